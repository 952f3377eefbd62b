"""Weak scaling on one machine: one rank and two ranks with one thread each, twice the rows for two.

Run: `python tests/benchmarks/bench_ranks.py [--repeats 3] [--strategy ddp] [--method lora]`.

Trains a random Qwen2 (hidden 256, 4 layers, vocabulary 4096) on rows of 512 tokens, 4 micro-batches a rank and step.
The runs take turns. Printed are medians: real tokens a second over all ranks, the efficiency (two ranks over twice one
rank), and the seconds of a step by part on the first rank: `data` lays rows out, `compute` is forward and backward,
`gradients` what the last backward pass takes longer than the others (their reduction), `agreement` the small messages
of the hosts, `move` clipping and optimiser.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
ROW_TOKENS, ROWS_A_RANK, WARM_STEPS, STEPS = 512, 4, 3, 12
PARTS = ("data", "compute", "gradients", "agreement", "move")


def build(out: Path, ranks: int, strategy: str, method: str) -> None:
    """Writes the model, the rows and the step of a run directory."""
    import numpy as np
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from tests.benchmarks.bench_train import SIZES
    from tests.tiny import tiny_tokenizer, write_store
    from tests.train.engines.group import placed
    from tests.train.runs import train_step
    from tunerun.base_model import BaseModel, write_base
    from tunerun.config.schema import MethodConfig
    from tunerun.plan import steps

    torch.manual_seed(0)
    tiny_tokenizer(out / "base")
    Qwen2ForCausalLM(Qwen2Config(**SIZES)).save_pretrained(out / "base")
    write_base(out, BaseModel(folder=out / "base", path="bench", revision=None, sha256="0"))
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 4096, (ROWS_A_RANK * ranks, ROW_TOKENS)).tolist()
    write_store(out / "data", [[(row, [1] * ROW_TOKENS)] for row in tokens])
    kind = MethodConfig(kind="full") if method == "full" else MethodConfig(rank=16)
    step = train_step(kind, micro_batch_size=1, max_steps=STEPS, global_batch_size=ROWS_A_RANK * ranks)
    step = placed(step, strategy, ranks) if ranks > 1 else step
    (out / "step.json").write_text(json.dumps(steps.to_json(step)))


def rank_main(out: Path) -> None:
    """One rank: trains, and the first one writes the seconds of each step by part."""
    from tunerun.plan import steps
    from tunerun.plan.steps import TrainStep
    from tunerun.train import gradients, loop, stage
    from tunerun.train.ranks import Ranks, connected
    from tunerun.train.signals import StopRequest

    spent: dict[str, float] = defaultdict(float)
    taken: list[dict[str, float]] = []

    def timed(name: str, function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            found = function(*arguments, **named)
            spent[name] += time.perf_counter() - began
            return found

        return call

    def watched(job: Any, *rest: Any) -> Any:
        engine, learn = job.engine, job.engine.learn

        def learned(function: Any, *, last: bool) -> Any:
            return timed("last" if last else "other", learn)(function, last=last)

        engine.learn, engine.move = learned, timed("move", engine.move)
        return run(job, *rest)

    def step(job: Any, index: int) -> Any:
        spent.clear()
        found = optimiser_step(job, index)
        taken.append({**spent, "seconds": found.seconds, "tokens": found.tokens})
        return found

    run, optimiser_step = loop.run, loop.optimiser_step
    loop.run, loop.optimiser_step = watched, step
    global_batch, numbers = gradients.global_batch, Ranks.numbers

    def laid_out(job: Any, index: int) -> Any:
        before = spent["agreement"]
        found = timed("data", global_batch)(job, index)
        spent["data"] -= spent["agreement"] - before
        return found

    gradients.global_batch = laid_out
    Ranks.numbers = timed("agreement", numbers)  # type: ignore[method-assign]
    wanted = steps.from_json(json.loads((out / "step.json").read_text()))
    assert isinstance(wanted, TrainStep)
    with connected(wanted.placement) as ranks:
        stage.train(wanted, out, StopRequest(), ranks)
        if ranks.is_first:
            (out / "taken.json").write_text(json.dumps(taken[WARM_STEPS:]))


def measure(ranks: int, strategy: str, method: str) -> dict[str, float]:
    """Trains with so many ranks; returns tokens a second and the median seconds of each part of a step."""
    from tests.train.engines.group import environments

    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        build(out, ranks, strategy, method)
        command = [sys.executable, __file__, "--rank", scratch]
        started = [
            subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for env in environments(ranks)
        ]
        assert [process.wait() for process in started] == [0] * ranks
        taken = json.loads((out / "taken.json").read_text())
    last, other = (sum(item[name] for item in taken) for name in ("last", "other"))
    each = other / (ROWS_A_RANK - 1)
    found = {
        **{name: sum(item[name] for item in taken) for name in ("data", "agreement", "move")},
        "compute": other + each,
        "gradients": max(last - each, 0.0),
    }
    seconds = sum(item["seconds"] for item in taken)
    rate = sum(item["tokens"] for item in taken) / seconds
    return {"tokens/s": rate, **{name: value / len(taken) for name, value in found.items()}}


def main() -> None:
    """Prints a table and the efficiency."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--strategy", default="ddp")
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--rank", type=Path)
    options = parser.parse_args()
    if options.rank is not None:
        rank_main(options.rank)
        return
    found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for _ in range(options.repeats):
        for ranks, measured in found.items():
            measured.append(measure(ranks, options.strategy, options.method))
    print(f"{options.strategy}, {options.method}, one thread a rank, medians of {options.repeats}")
    print(f"{'ranks':>5}{'tokens/s':>10}" + "".join(f"{name:>11}" for name in PARTS) + "   (seconds a step)")
    rates = {}
    for ranks, measured in found.items():
        middle = {name: statistics.median(item[name] for item in measured) for name in measured[0]}
        rates[ranks] = middle["tokens/s"]
        print(f"{ranks:>5}{middle['tokens/s']:>10,.0f}" + "".join(f"{middle[name]:>11.4f}" for name in PARTS))
    print(f"efficiency of 2 ranks: {rates[2] / (2 * rates[1]):.2f}")


if __name__ == "__main__":
    main()
