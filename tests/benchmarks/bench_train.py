"""Trains a tiny Qwen2 with tunerun and with TRL's SFTTrainer, side by side, on the same tokens.

Run: `python tests/benchmarks/bench_train.py [--epochs 1] [--repeats 3] [--threads 1] [--precision bf16] [--busy]`.

Full fine-tuning of a random model (hidden 256, 4 layers, vocabulary 4096) on 64 samples of 7.7 thousand tokens in 8
optimiser steps an epoch; 7 epochs are 54 thousand tokens. The runners take turns in fresh processes; seconds and CPU
seconds are those of training alone, first steps included, without imports. `--busy` keeps one core busy meanwhile;
tunerun chooses how its threads wait as it does when it starts a stage. TRL runs with its defaults (activations
recomputed, padded batches of 8) and with its best flags (packed rows of 1024 tokens, nothing recomputed). bf16 needs a
CPU that has it (avx512_bf16 or amx_bf16): others take minutes for a step. Printed are medians of real tokens a second
and of CPU seconds, the loss of the trained model over all samples, and the ratios by time and by CPU seconds: on a
shared machine the latter are the steadier ones. That loss is computed in float32 by one script for all runners: those
of the last steps are of other samples where rows are packed in another order.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

from tunerun.launch.command import Launch  # noqa: E402 (the path comes first)
from tunerun.launch.waiting import with_wait_policy  # noqa: E402

ROW_TOKENS = 1024
SIZES = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
}

TUNERUN = """
import json, sys, time
from pathlib import Path
from tunerun.plan import steps
from tunerun.train import loop, stage
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
train = loop.run
def timed(*arguments):
    began = time.process_time()
    found = train(*arguments)
    (out / "cpu.json").write_text(json.dumps(time.process_time() - began))
    return found
loop.run = timed
stage.run(steps.from_json(json.loads((folder / sys.argv[3]).read_text())), out)
"""
TRL = """
import json, sys, time
import torch, datasets, trl
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
torch.set_num_threads(int(sys.argv[4]))
folder, out, packed, epochs = sys.argv[1], sys.argv[2], sys.argv[3] == "packed", int(sys.argv[5])
rows = json.load(open(folder + "/samples.json"))
data = datasets.Dataset.from_list([{"input_ids": t, "completion_mask": m} for t, m in rows])
best = {"packing": True, "max_length": 1024, "gradient_checkpointing": False, "per_device_train_batch_size": 1}
arguments = trl.SFTConfig(
    output_dir=out, num_train_epochs=epochs, learning_rate=1e-3, lr_scheduler_type="constant", warmup_steps=0,
    completion_only_loss=True, use_cpu=True, bf16=sys.argv[6] == "bf16", report_to="none", save_strategy="no",
    logging_steps=1, disable_tqdm=True, **(best if packed else {}))
model = AutoModelForCausalLM.from_pretrained(folder + "/base", dtype=torch.float32)
tokenizer = PreTrainedTokenizerFast.from_pretrained(folder + "/base")
trainer = trl.SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer)
began = time.process_time()
done = trainer.train()
cpu = time.process_time() - began
trainer.save_model(out + "/model")
json.dump({"seconds": done.metrics["train_runtime"], "steps": done.global_step, "cpu": cpu},
          open(out + "/result.json", "w"))
"""
LOSS = """
import json, sys
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[2], dtype=torch.float32)
total, count = 0.0, 0
with torch.no_grad():
    for tokens, learned in json.load(open(sys.argv[1] + "/samples.json")):
        logits = model(torch.tensor([tokens])).logits[0, :-1].double()
        targets = torch.tensor(tokens[1:])[torch.tensor(learned[1:]) == 1]
        logits = logits[torch.tensor(learned[1:]) == 1]
        total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        count += len(targets)
print(total / count)
"""


# Ours, theirs, and how TRL runs: the same steps and tokens in all.
PAIRS = (
    ("tunerun rows", "trl rows", "defaults"),
    ("tunerun packed", "trl rows", "defaults"),
    ("tunerun packed", "trl packed", "best flags"),
)


def samples() -> list[tuple[list[int], list[int]]]:
    """Returns 64 samples of 30 to 210 tokens that repeat themselves, the last two thirds of each trained."""
    generator = np.random.default_rng(0)
    found = []
    for length in generator.integers(30, 208, 64):
        pattern = generator.integers(4, 400, 12)
        tokens = np.resize(pattern, int(length)).tolist()
        found.append((tokens, [int(index >= length // 3) for index in range(int(length))]))
    return found


def build(folder: Path, threads: int, epochs: int, precision: Any) -> int:
    """Writes the model, the samples in every form and tunerun's steps; returns the number of tokens."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    from tunerun.base_model import BaseModel, write_base
    from tunerun.config.schema import (
        EvalConfig,
        MethodConfig,
        ModelConfig,
        ObjectiveConfig,
        TrackConfig,
        TrainConfig,
    )
    from tunerun.data.pack import pack
    from tunerun.formats.tokens import TokenWriter
    from tunerun.plan import steps
    from tunerun.plan.placement import Placement
    from tunerun.plan.steps import TrainStep

    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**SIZES)).save_pretrained(folder / "base")
    words = {"<pad>": 0, "<eos>": 1, **{f"w{index}": index for index in range(2, 4096)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>").save_pretrained(
        folder / "base"
    )
    rows = samples()
    (folder / "samples.json").write_text(json.dumps(rows))
    for kind in ("rows", "packed"):
        out = folder / kind
        write_base(out, BaseModel(folder=folder / "base", path="bench", revision=None, sha256="0"))
        lengths = np.array([len(tokens) for tokens, _ in rows])
        groups = pack(lengths, ROW_TOKENS) if kind == "packed" else [[index] for index in range(len(rows))]
        with TokenWriter(out / "data") as writer:
            for group in groups:
                writer.add(*[(np.array(rows[index][0]), np.array(rows[index][1])) for index in group])
            writer.finish(
                objective="sft",
                tokenizer_sha256="0",
                template_sha256=None,
                max_length=ROW_TOKENS,
                packed=kind == "packed",
            )
        size = 1 if kind == "packed" else 8
        step = TrainStep(
            model=ModelConfig(path="bench"),
            objective=ObjectiveConfig(),
            method=MethodConfig(kind="full"),
            train=TrainConfig(
                epochs=float(epochs),
                global_batch_size=size,
                learning_rate=1e-3,
                schedule="constant",
                warmup_fraction=0.0,
            ),
            eval=EvalConfig(),
            track=TrackConfig(),
            name="bench",
            placement=Placement(threads=threads, precision=precision),
            micro_batch_size=size,
            accumulation_steps=1,
            activation_checkpointing=False,
            max_shard_size_bytes=10**10,
            seed=0,
        )
        (folder / f"{kind}.json").write_text(json.dumps(steps.to_json(step)))
    return int(sum(len(tokens) for tokens, _ in rows))


def run(folder: Path, name: str, threads: int, epochs: int, precision: str) -> dict[str, float]:
    """Trains in a fresh process; returns seconds and CPU seconds of training, steps and the model's loss after them."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        runner, kind = name.split()
        if runner == "tunerun":
            subprocess.run(["cp", "-r", f"{folder / kind}/.", scratch], check=True)
            command = [sys.executable, "-c", TUNERUN, str(folder), scratch, f"{kind}.json"]
        else:
            command = [sys.executable, "-c", TRL, str(folder), scratch, kind, str(threads), str(epochs), precision]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": str(ROOT / "src"),
            "HF_HUB_OFFLINE": "1",
        }
        if runner == "tunerun":
            environment |= with_wait_policy(Launch(argv=(), env={"OMP_NUM_THREADS": str(threads)}, without=())).env
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        trained = out / ("merged" if runner == "tunerun" else "model")
        asked = [sys.executable, "-c", LOSS, str(folder), str(trained)]
        loss = float(subprocess.run(asked, env=environment, check=True, stdout=subprocess.PIPE).stdout)
        if runner == "tunerun":
            last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
            cpu = json.loads((out / "cpu.json").read_text())
            return {"seconds": last["seconds"], "cpu": cpu, "steps": last["step"], "loss": loss}
        found: dict[str, float] = json.loads((out / "result.json").read_text())
        return {**found, "loss": loss}


@contextmanager
def busy_core(wanted: bool) -> Iterator[None]:
    """Keeps one core at work within the block."""
    if not wanted:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbour:
        try:
            yield
        finally:
            neighbour.kill()


def main() -> None:
    """Prints a table of medians and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="fp32")
    parser.add_argument("--busy", action="store_true", help="one core has other work")
    options = parser.parse_args()
    settings = (options.threads, options.epochs, options.precision)
    names = ("tunerun rows", "trl rows", "tunerun packed", "trl packed")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        tokens = build(Path(scratch), *settings) * options.epochs
        with busy_core(options.busy):
            for _ in range(options.repeats):
                for name in names:
                    found[name].append(run(Path(scratch), name, *settings))
    print(f"{tokens:,} tokens, {options.precision}, {options.threads} threads, medians of {options.repeats}")
    print(f"{'runner':16}{'tokens/s':>10}{'seconds':>9}{'CPU s':>8}{'steps':>7}{'loss after':>12}")
    rates, costs = {}, {}
    for name in names:
        seconds, cpu = (statistics.median(result[key] for result in found[name]) for key in ("seconds", "cpu"))
        rates[name], costs[name] = tokens / seconds, cpu
        steps, loss = int(found[name][-1]["steps"]), found[name][-1]["loss"]
        print(f"{name:16}{rates[name]:>10,.0f}{seconds:>9.2f}{cpu:>8.1f}{steps:>7}{loss:>12.4f}")
    for ours, theirs, flags in PAIRS:
        faster, cheaper = rates[ours] / rates[theirs], costs[theirs] / costs[ours]
        print(f"{ours} / TRL {flags}: {faster:.2f} by time, {cheaper:.2f} by CPU seconds")


if __name__ == "__main__":
    main()
