"""Times a command from its start to the first optimiser step: `tunerun +recipe=...` and `trl sft`, taking turns.

Run: `python tests/benchmarks/bench_start.py [--repeats 5] [--parts]`.

Both fine-tune the same random Qwen2 (hidden 256, 4 layers) in full on the same 64 conversations, on a CPU in float32;
the data caches of both are warm, as on every run but the first. The clock stops when the loss of the first step is
written: to metrics.jsonl, or to TRL's standard output. `--parts` shows where tunerun's time goes, stage by stage, and
the slowest imports of the train stage. Needs trl and datasets.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
SIZES = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}
POLL_SECONDS = 0.005
RECIPE = """# @package _global_
defaults:
  - override /method: full
  - _self_
model:
  path: {folder}/base
data:
  path: {folder}/rows/train.jsonl
stages: [data, train]
train:
  max_steps: 2
  global_batch_size: 8
"""


def build(folder: Path) -> None:
    """Writes the model, the rows and the recipe."""
    from tests.tiny import tiny_qwen2

    tiny_qwen2(folder / "base", **SIZES)
    (folder / "rows").mkdir()
    with (folder / "rows" / "train.jsonl").open("w", encoding="utf-8") as file:
        for number in range(64):
            ask, answer = f"What is {number} plus one?", f"It is {number + 1}."
            turns = [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")
    (folder / "recipes").mkdir()
    (folder / "recipes" / "start.yaml").write_text(RECIPE.format(folder=folder), encoding="utf-8")


def tunerun(folder: Path, out: Path) -> list[str]:
    """Returns tunerun's command line."""
    return [sys.executable, "-m", "tunerun", "+recipe=start", f"run_dir={out}"]


def trl(folder: Path, out: Path) -> list[str]:
    """Returns TRL's command line."""
    options = {
        "model_name_or_path": folder / "base",
        "dataset_name": folder / "rows",
        "output_dir": out,
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return [str(Path(sys.executable).parent / "trl"), "sft", *words]


def timed(command: Callable[[Path, Path], list[str]], folder: Path) -> tuple[float, float]:
    """Returns the seconds until the first loss is written, and the CPU seconds until then."""
    with tempfile.TemporaryDirectory() as scratch:
        out, said = Path(scratch) / "run", Path(scratch) / "said.txt"
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "src"),
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "HF_HOME": str(folder / "cache" / "hf"),
        }
        before, began = os.times(), time.perf_counter()
        with said.open("w", encoding="utf-8") as file:
            argv = command(folder, out)
            child = subprocess.Popen(argv, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT)
            while not _has_loss(out / "metrics.jsonl", said):
                if child.poll() not in (None, 0):
                    raise SystemExit(f"{argv[0]} failed:\n{said.read_text(encoding='utf-8')[-3000:]}")
                time.sleep(POLL_SECONDS)
            seconds = time.perf_counter() - began
            child.wait()
        after = os.times()
        return seconds, after.children_user + after.children_system - before.children_user - before.children_system


def _has_loss(metrics: Path, said: Path) -> bool:
    if metrics.is_file() and '"loss"' in metrics.read_text(encoding="utf-8"):
        return True
    return "'loss'" in said.read_text(encoding="utf-8")


def parts(folder: Path) -> None:
    """Prints when each stage began and ended, and what the train stage imports for long."""
    out = folder / "parts"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "HF_HUB_OFFLINE": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    subprocess.run(tunerun(folder, out), cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    print("stage     seconds")
    for stage, entry in record["stages"].items():
        print(f"{stage:10}{entry['seconds']:>7.2f}")
    argv = [sys.executable, "-X", "importtime", "-c", "import tunerun.train.stage"]
    told = subprocess.run(argv, env=environment, check=True, capture_output=True, text=True).stderr
    rows = [line.removeprefix("import time:").split("|") for line in told.splitlines() if line.startswith("import")]
    slow = sorted(((int(row[1]), row[2]) for row in rows[1:]), reverse=True)[:30]
    print("\nimports of the train stage, cumulative ms")
    for microseconds, name in slow:
        print(f"{microseconds / 1000:>8.0f} {name.strip()}")


def main() -> None:
    """Prints a table of medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", action="store_true")
    options = parser.parse_args()
    commands = {"tunerun": tunerun, "trl sft": trl}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        build(folder)
        for command in commands.values():
            timed(command, folder)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(options.repeats):
            for name, command in commands.items():
                found[name].append(timed(command, folder))
        print(f"command to first optimiser step, medians of {options.repeats}; CPU seconds are of the whole command")
        print(f"{'command':10}{'seconds':>9}{'CPU s':>8}")
        medians = {}
        for name, times in found.items():
            seconds, cpu = (statistics.median(values) for values in zip(*times, strict=True))
            medians[name] = seconds
            print(f"{name:10}{seconds:>9.2f}{cpu:>8.1f}")
        print(f"tunerun / trl sft: {medians['tunerun'] / medians['trl sft']:.2f}")
        if options.parts:
            parts(folder)


if __name__ == "__main__":
    main()
