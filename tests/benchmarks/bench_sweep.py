"""Eight LoRA trials of the shipped model, as one sweep and as eight commands, side by side.

Run: `python tests/benchmarks/bench_sweep.py [--steps 24] [--repeats 3] [--only sweep alone asha trl]`.

Every trial trains on the same 109 short chat rows, 8 in a step, at one of eight learning rates, and measures the loss
on 21 held-out rows at the end. `alone` are eight `tunerun +recipe=...` one after the other, `sweep` one `tunerun -m`
with two trials at a time, `asha` the same with trials that are judged every `steps / 8` steps and end early, and `trl`
eight `trl sft` with LoRA at their best flags (nothing recomputed, no checkpoints). The runners take turns; printed are
the medians of wall and CPU seconds, the ratios, and each runner's best learning rate.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RATES = ("1e-2", "3e-3", "1e-3", "3e-4", "1e-4", "3e-5", "1e-5", "3e-6")
EVAL_EVERY = 8
JOBS = 2
TRAIN_ROWS = 109


def write_rows(folder: Path) -> None:
    """Writes the shipped identity rows as chat messages, the last ones held out."""
    text = (ROOT / "src/tunerun/assets/identity.jsonl").read_text(encoding="utf-8")
    text = text.replace("{{name}}", "Ada").replace("{{author}}", "Bob")
    rows = [json.loads(line) for line in text.splitlines()]
    chats = [
        {
            "messages": [
                {"role": "user", "content": "\n".join(part for part in (row["instruction"], row["input"]) if part)},
                {"role": "assistant", "content": row["output"]},
            ]
        }
        for row in rows
    ]
    folder.mkdir()
    for name, part in (("train", chats[:TRAIN_ROWS]), ("test", chats[TRAIN_ROWS:])):
        lines = "".join(json.dumps(chat, ensure_ascii=False) + "\n" for chat in part)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def call(argv: list[str], folder: Path) -> str:
    """Runs a command in a folder and returns what it said; fails when it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(argv)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def tunerun(folder: Path, steps: int, *arguments: str) -> None:
    """Runs tunerun on the rows."""
    wanted = [
        "model=sprout",
        "method=lora",
        "method.rank=8",
        f"data.path={folder}/rows/train.jsonl",
        f"data.eval_path={folder}/rows/test.jsonl",
        "data.max_length=512",
        "stages=[data,train,eval]",
        f"train.max_steps={steps}",
        "train.global_batch_size=8",
    ]
    call([sys.executable, "-m", "tunerun", *arguments[:1], *wanted, *arguments[1:]], folder)


def alone(folder: Path, steps: int) -> str:
    """Runs eight commands."""
    losses = {}
    for rate in RATES:
        out = folder / f"alone-{rate}"
        tunerun(folder, steps, f"run_dir={out}", f"train.learning_rate={rate}")
        losses[rate] = json.loads((out / "eval/report.json").read_text())["models"]["tuned"]["loss"]
    return min(losses, key=lambda rate: losses[rate])


def sweep(folder: Path, steps: int) -> str:
    """Runs one sweep."""
    tunerun(folder, steps, "-m", f"train.learning_rate={','.join(RATES)}", f"sweep.jobs={JOBS}")
    return best(folder)


def asha(folder: Path, steps: int) -> str:
    """Runs one search over the same points that ends bad ones early."""
    halving = ["hydra.sweeper.sampler=grid", "hydra.sweeper.pruner=asha", "hydra.sweeper.reduction_factor=2"]
    measured = f"train.eval_steps={max(1, steps // EVAL_EVERY)}"
    axis = f"train.learning_rate={','.join(RATES)}"
    tunerun(folder, steps, "-m", "hydra/sweeper=tunerun_optuna", *halving, measured, axis, f"sweep.jobs={JOBS}")
    return best(folder)


def best(folder: Path) -> str:
    """Returns the learning rate of the first trial of the newest sweep's table."""
    newest = max((folder / "outputs/sweeps").iterdir(), key=lambda path: path.stat().st_mtime)
    trials = json.loads((newest / "results.json").read_text())["trials"]
    value = float(trials[0]["parameters"]["train.learning_rate"])
    return next(rate for rate in RATES if float(rate) == value)


def trl(folder: Path, steps: int) -> str:
    """Runs eight commands of TRL."""
    losses = {}
    for rate in RATES:
        out = folder / f"trl-{rate}"
        said = call(
            [
                str(Path(sys.executable).with_name("trl")), "sft",
                "--model_name_or_path", str(ROOT / "src/tunerun/assets/sprout"), "--dtype", "float32",
                "--dataset_name", str(folder / "rows"), "--dataset_test_split", "test",
                "--output_dir", str(out), "--learning_rate", rate, "--max_steps", str(steps),
                "--per_device_train_batch_size", "8", "--per_device_eval_batch_size", "8",
                "--use_peft", "--lora_r", "8", "--lora_alpha", "32", "--lora_target_modules", "all-linear",
                "--use_cpu", "--bf16", "false", "--gradient_checkpointing", "false", "--max_length", "512",
                "--eval_strategy", "steps", "--eval_steps", str(steps), "--save_strategy", "no",
                "--report_to", "none", "--logging_steps", "1",
            ],
            folder,
        )  # fmt: skip
        losses[rate] = float(re.findall(r"'eval_loss': '?([0-9.e+-]+)", said)[-1])
    return min(losses, key=lambda rate: losses[rate])


RUNNERS: dict[str, Callable[[Path, int], str]] = {"alone": alone, "sweep": sweep, "asha": asha, "trl": trl}


def timed(name: str, steps: int) -> tuple[float, float, str]:
    """Runs all trials with one runner; returns wall seconds, CPU seconds, and the best learning rate."""
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder) / "rows")
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        winner = RUNNERS[name](Path(folder), steps)
        wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, winner


def main() -> None:
    """Runs the runners in turn and prints medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=sorted(RUNNERS), default=list(RUNNERS))
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float, str]]] = {name: [] for name in options.only}
    for _ in range(options.repeats):
        for name in options.only:
            found[name].append(timed(name, options.steps))
            print(f"{name}: {found[name][-1]}", flush=True)
    print(f"8 trials of {options.steps} steps on {os.cpu_count()} cores, medians of {options.repeats}")
    for name, runs in found.items():
        wall, cpu = (statistics.median(run[index] for run in runs) for index in (0, 1))
        print(f"{name:6} {wall:7.1f} s wall {cpu:7.1f} s CPU   best {', '.join(sorted({run[2] for run in runs}))}")
    for name in ("sweep", "asha"):
        for other in ("alone", "trl"):
            if name in found and other in found:
                ratios = [second[0] / first[0] for first, second in zip(found[name], found[other], strict=True)]
                print(f"{name} is {statistics.median(ratios):.1f} times as fast as {other}")


if __name__ == "__main__":
    main()
