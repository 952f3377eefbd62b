"""Merges a LoRA adapter with tunerun and with peft, side by side.

Run: `python tests/benchmarks/bench_merge.py [--layers 15] [--repeats 5] [--alone]`. Builds a random bfloat16 Qwen2 and
an adapter of rank 16 on all linear layers, then runs both in fresh processes, turn about and with the disk at rest, and
prints medians of wall time (start of the process to its end), CPU time and peak resident memory. The merged tensors are
compared, too. `--alone` leaves peft out, for models that it has no memory for (`--layers 124`: 4 GB).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
"""
TUNERUN = """
import sys
from pathlib import Path
from tunerun.merge.merge import merge_adapter
base, adapter, out = map(Path, sys.argv[1:])
merge_adapter(base, adapter, out, max_shard_size_bytes=5_000_000_000)
"""


def build(folder: Path, layers: int) -> None:
    """Saves the base model and the adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder / "base")
    tuned = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=0.02)
    tuned.save_pretrained(folder / "adapter")


def measure(code: str, folder: Path, out: Path) -> tuple[float, float, float]:
    """Runs code in a fresh process; returns wall seconds, CPU seconds and peak resident memory in MiB."""
    timer = "/usr/bin/time"
    arguments = [sys.executable, "-c", code, str(folder / "base"), str(folder / "adapter"), str(out)]
    path = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "PYTHONPATH": path}
    # What the run before it left to be written is not its business.
    os.sync()
    if Path(timer).exists():
        arguments = [timer, "-f", "%e %U %S %M", *arguments]
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
        wall, user, system, kib = map(float, done.stderr.strip().splitlines()[-1].split())
        return wall, user + system, kib / 1024
    import resource
    import time

    started = time.perf_counter()
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, code
    assert isinstance(usage, resource.struct_rusage)
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def differing_values(left: Path, right: Path) -> int:
    """Counts the values that differ between two merged folders."""
    import torch
    from safetensors.torch import load_file

    mine, theirs = load_file(left / "model.safetensors"), load_file(right / "model.safetensors")
    assert mine.keys() == theirs.keys()
    return sum(int(torch.ne(mine[name], theirs[name]).sum()) for name in mine)


def main() -> None:
    """Builds, measures and prints one JSON line for each side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--alone", action="store_true")
    options = parser.parse_args()
    sides = {"tunerun": TUNERUN} if options.alone else {"tunerun": TUNERUN, "peft": PEFT}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own: Linux counts what a process held before it became another.
        with ProcessPoolExecutor(1, get_context("spawn")) as builder:
            builder.submit(build, folder, options.layers).result()
        size = (folder / "base" / "model.safetensors").stat().st_size
        print(json.dumps({"model_megabytes": round(size / 1e6)}))
        runs: dict[str, list[tuple[float, float, float]]] = {side: [] for side in sides}
        for _ in range(options.repeats):
            for side, code in sides.items():
                runs[side].append(measure(code, folder, folder / side))
        for side, results in runs.items():
            wall, cpu, memory = (statistics.median(column) for column in zip(*results, strict=True))
            print(
                json.dumps({"side": side, "wall_s": round(wall, 2), "cpu_s": round(cpu, 2), "rss_mib": round(memory)})
            )
        if not options.alone:
            print(json.dumps({"differing_values": differing_values(folder / "tunerun", folder / "peft")}))


if __name__ == "__main__":
    main()
