"""Fine-tunes Qwen2.5 shapes with random weights on one GPU, with tunerun and, where they are installed, TRL and Liger.

Run: `python tests/benchmarks/bench_gpu.py [--shape 7b-lora 1.5b-lora 1.5b-full] [--micro 2] [--out RESULTS.md]`; on a
machine without a GPU, `--shape tiny --device cpu` shows that it works. Needs torch, transformers and peft besides
tunerun; nothing is downloaded.

Samples of 200 to 2000 tokens, the last two thirds of each trained; LoRA of rank 16 on every linear layer. tunerun packs
them into rows of 4096 tokens and recomputes nothing. TRL runs with its defaults (batches of 8 padded samples,
activations recomputed) and, when liger-kernel is there too, with Liger and packed rows without recomputing. All take
the same number of tokens for a step, up to rounding. Each runner has a process of its own, and they take turns.

Printed are real tokens a second (padding does not count) without the warm-up, the time of the first step with what is
compiled in it, peak memory, and the share of the bf16 peak of an H100 or H200 (989 TFLOP/s by the data sheet), at 4
operations for each weight and token (LoRA) or 6 (full) and causal attention within the samples.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PEAK_FLOPS = 989e12
PACKAGES = ("torch", "transformers", "peft", "trl", "liger-kernel")
RUNNERS = ("tunerun", "tunerun compiled", "trl defaults", "trl liger packed")


@dataclass(frozen=True)
class Shape:
    """What is trained."""

    method: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    row_tokens: int = 4096
    lengths: tuple[int, int] = (200, 2000)
    micro: int = 2
    """Rows computed at a time."""
    rows: int = 8
    """Rows in an optimiser step."""
    goal: float | None = None
    """Real tokens a second that are aimed at on one H200."""

    @property
    def matmul_parameters(self) -> int:
        """Weights that every token is multiplied by, the output layer among them."""
        width = self.hidden // self.heads
        attention = self.hidden * (2 * self.heads + 2 * self.kv_heads) * width
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + self.vocabulary * self.hidden

    def config(self) -> dict[str, Any]:
        """Returns the config of a Qwen2."""
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": self.tied,
        }


SHAPES = {
    "7b-lora": Shape("lora", 28, 3584, 18944, 28, 4, 152064, False, goal=15_500),
    "1.5b-lora": Shape("lora", 28, 1536, 8960, 12, 2, 151936, True, micro=4, goal=55_000),
    "1.5b-full": Shape("full", 28, 1536, 8960, 12, 2, 151936, True, micro=4, goal=43_000),
    "tiny": Shape("lora", 2, 64, 128, 4, 2, 512, True, row_tokens=128, lengths=(10, 60), micro=2, rows=4),
}


def samples(shape: Shape, steps: int) -> list[np.ndarray]:
    """Returns samples that fill about so many optimiser steps."""
    generator = np.random.default_rng(0)
    low, high = shape.lengths
    count = 2 * shape.row_tokens * shape.rows * steps // (low + high)
    return [generator.integers(4, shape.vocabulary, size) for size in generator.integers(low, high, count)]


def trained(sample: np.ndarray) -> np.ndarray:
    """Returns which tokens of a sample are learned."""
    return np.arange(len(sample)) >= len(sample) // 3


def model(shape: Shape, dtype: Any, device: str, attention: str) -> Any:
    """Makes the model on the device, where random numbers cost nothing."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return Qwen2ForCausalLM._from_config(Qwen2Config(**shape.config()), attn_implementation=attention)
    finally:
        torch.set_default_dtype(before)


def with_tunerun(shape: Shape, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Trains as the train stage does, from its first step on."""
    from tunerun.base_model import BaseModel, write_base
    from tunerun.child import RankReport
    from tunerun.config.schema import EvalConfig, MethodConfig, ModelConfig, ObjectiveConfig, TrackConfig, TrainConfig
    from tunerun.data.pack import pack
    from tunerun.formats.tokens import TokenWriter
    from tunerun.plan.placement import Placement
    from tunerun.plan.steps import TrainStep
    from tunerun.train import loop, metrics, network, stage
    from tunerun.train.ranks import Ranks
    from tunerun.train.signals import StopRequest

    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_text(json.dumps({**shape.config(), "dtype": "bfloat16"}))
    base = BaseModel(folder=folder / "base", path="bench", revision=None, sha256="0")
    write_base(folder, base)
    tokens = samples(shape, options.warmup + options.steps + 1)
    with TokenWriter(folder / "data") as writer:
        for group in pack(np.array([len(sample) for sample in tokens]), shape.row_tokens):
            writer.add(*[(tokens[index], trained(tokens[index])) for index in group])
        writer.finish(
            objective="sft", tokenizer_sha256="0", template_sha256=None, max_length=shape.row_tokens, packed=True
        )
    step = TrainStep(
        model=ModelConfig(path="bench"),
        objective=ObjectiveConfig(),
        method=MethodConfig(kind=shape.method),  # type: ignore[arg-type]
        train=TrainConfig(max_steps=options.warmup + options.steps, global_batch_size=shape.rows, learning_rate=1e-5),
        eval=EvalConfig(),
        track=TrackConfig(),
        name="bench",
        placement=Placement(
            device=options.device, precision="bf16" if options.device == "cuda" else "fp32", threads=options.threads
        ),
        micro_batch_size=options.micro or shape.micro,
        accumulation_steps=max(1, shape.rows // (options.micro or shape.micro)),
        activation_checkpointing=False,
        compile=options.worker == "tunerun compiled",
        max_shard_size_bytes=10**10,
        seed=0,
    )
    # Weights made where they are used: 7 billion on the host would take minutes.
    network._weights = lambda step, folder, dtype, resumed: model(shape, dtype, options.device, network.SEGMENTS)
    stage.set_determinism(deterministic=options.device == "cpu", threads=options.threads)
    job, _ = stage._prepare(step, base, folder, {}, None, Ranks())
    job.network.train()
    results = [result for result, _ in loop._steps(job, range(job.total_steps), StopRequest(), RankReport())]
    measured = results[options.warmup :]
    seconds = sum(result.seconds for result in measured)
    return {
        "tokens": sum(result.tokens for result in measured),
        "seconds": seconds,
        "first": results[0].seconds,
        "loss": results[-1].loss,
        "memory": metrics.peak_memory_bytes(options.device),
    }


def with_trl(shape: Shape, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Trains the same samples with TRL's SFTTrainer."""
    import torch
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    torch.set_num_threads(options.threads)
    liger = options.worker == "trl liger packed"
    rows = [
        {
            "input_ids": sample.tolist(),
            "completion_mask": trained(sample).astype(int).tolist(),
        }
        for sample in samples(shape, options.warmup + options.steps + 1)
    ]
    mean = statistics.mean(len(row["input_ids"]) for row in rows)
    wanted, micro = shape.rows * shape.row_tokens, options.micro or shape.micro
    size = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": max(1, shape.rows // micro)}
    if not liger:
        size = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": max(1, round(wanted / mean / 8))}
    best = {"packing": True, "gradient_checkpointing": False, "use_liger_kernel": True} if liger else {}
    arguments = trl.SFTConfig(
        output_dir=str(folder),
        max_steps=options.warmup + options.steps,
        max_length=shape.row_tokens,
        completion_only_loss=True,
        learning_rate=1e-5,
        bf16=options.device == "cuda",
        use_cpu=options.device == "cpu",
        report_to="none",
        save_strategy="no",
        logging_steps=options.warmup + options.steps,
        disable_tqdm=True,
        **size,
        **best,
    )
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    half = shape.method == "lora" and options.device == "cuda"
    trainer = trl.SFTTrainer(
        model=model(shape, torch.bfloat16 if half else torch.float32, options.device, "sdpa"),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"),
        peft_config=lora if shape.method == "lora" else None,
    )
    steps: list[tuple[float, Any]] = []
    original = trainer.training_step

    def counted(*inputs: Any, **values: Any) -> Any:
        batch = inputs[1]
        mask = batch.get("attention_mask")
        # Kept on the device: asking for the number would make the trainer wait.
        steps.append((time.perf_counter(), batch["input_ids"].numel() if mask is None else mask.sum()))
        return original(*inputs, **values)

    trainer.training_step = counted
    trainer.train()
    if options.device == "cuda":
        torch.cuda.synchronize()
    ended, each = time.perf_counter(), arguments.gradient_accumulation_steps
    measured = steps[options.warmup * each :]
    losses = [line["train_loss"] for line in trainer.state.log_history if "train_loss" in line]
    return {
        "tokens": float(sum(int(count) for _, count in measured)),
        "seconds": ended - measured[0][0],
        "first": steps[min(each, len(steps) - 1)][0] - steps[0][0],
        "loss": float(losses[-1]),
        "memory": torch.cuda.max_memory_allocated() if options.device == "cuda" else 0.0,
    }


def flops(shape: Shape, mean_squared: float, mean: float) -> float:
    """Returns the operations of a real token.

    Args:
        shape: Of the model.
        mean_squared: Of the samples' lengths.
        mean: Of the samples' lengths.
    """
    factor = 4 if shape.method == "lora" else 6
    return factor * shape.matmul_parameters + 3 * 2 * shape.hidden * shape.layers * mean_squared / mean


def available(options: argparse.Namespace) -> list[str]:
    """Returns the runners that this machine has."""
    has_trl = importlib.util.find_spec("trl") is not None and importlib.util.find_spec("datasets") is not None
    has_liger = has_trl and importlib.util.find_spec("liger_kernel") is not None and options.device == "cuda"
    # What inductor makes for a CPU is not what is measured here.
    missing = {
        "trl defaults": not has_trl,
        "trl liger packed": not has_liger,
        "tunerun compiled": options.device == "cpu" and options.runners is None,
    }
    return [name for name in options.runners or RUNNERS if not missing.get(name, False)]


def measure(name: str, runner: str, options: argparse.Namespace) -> dict[str, float]:
    """Runs a worker in a fresh process."""
    words = [f"--{key}={getattr(options, key)}" for key in ("device", "steps", "warmup", "micro", "threads")]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        command = [sys.executable, __file__, f"--shape={name}", f"--worker={runner}", f"--folder={out}", *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": str(options.threads)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{runner} on {name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        found: dict[str, float] = json.loads((out / "result.json").read_text())
        return found


def table(options: argparse.Namespace) -> str:
    """Measures everything and returns it as Markdown."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES if _installed(name))
    lines = [
        f"### {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {_device_name(options.device)}",
        "",
        f"{versions}; medians of {options.repeats}, {options.steps} steps after {options.warmup}.",
        "",
        "| shape | runner | real tok/s | goal | of bf16 peak | first step | peak memory | last loss |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in options.shape:
        runners = available(options)
        found: dict[str, list[dict[str, float]]] = {runner: [] for runner in runners}
        for _ in range(options.repeats):
            for runner in runners:
                found[runner].append(measure(name, runner, options))
        lines += [_row(name, runner, results, options) for runner, results in found.items()]
    return "\n".join(lines)


def _row(name: str, runner: str, results: list[dict[str, float]], options: argparse.Namespace) -> str:
    shape = SHAPES[name]
    sizes = np.array([len(sample) for sample in samples(shape, options.warmup + options.steps + 1)], float)
    rate = statistics.median(result["tokens"] / result["seconds"] for result in results)
    share = rate * flops(shape, float((sizes**2).mean()), float(sizes.mean())) / PEAK_FLOPS
    middle = {key: statistics.median(result[key] for result in results) for key in ("first", "loss", "memory")}
    goal = "-" if shape.goal is None else f"{shape.goal:,.0f}"
    return (
        f"| {name} | {runner} | {rate:,.0f} | {goal} | {share:.1%} | {middle['first']:.1f} s "
        f"| {middle['memory'] / 2**30:.1f} GiB | {middle['loss']:.4f} |"
    )


def _installed(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.backends.cpu.get_cpu_capability()}"


def main() -> None:
    """Prints the table, or does the work of one runner."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["7b-lora", "1.5b-lora", "1.5b-full"])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--runners", nargs="+", choices=RUNNERS, help="all that can run, by default")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--micro", type=int, default=0, help="rows computed at a time, instead of the shape's")
    parser.add_argument("--threads", type=int, default=max(1, len(os.sched_getaffinity(0)) // 2))
    parser.add_argument("--out", type=Path, help="a file that the table is added to")
    parser.add_argument("--worker", choices=RUNNERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work = with_tunerun if options.worker.startswith("tunerun") else with_trl
        result = work(SHAPES[options.shape[0]], options, options.folder)
        (options.folder / "result.json").write_text(json.dumps(result))
        return
    found = table(options)
    print(found)
    if options.out is not None:
        with options.out.open("a", encoding="utf-8") as file:
            file.write(f"\n{found}\n")


if __name__ == "__main__":
    main()
