"""Measures what the guards and metrics of a training step cost: finite checks, spike check, metrics.jsonl, progress.

Run: `python tests/benchmarks/bench_guards.py [--steps 24] [--limit 0.02]`.

The model and data are those of bench_train.py, one process, one thread. Steps are timed in CPU seconds, and beside each
step everything that the loop does with its numbers is done again and timed by itself; a random model of this size is
about the smallest that is worth a training, so that the share on others is less. Fails (exit code 1) when the share,
median over median, is above the limit.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(Path(__file__).parent)]


def guards(job: Any, result: Any, progress: Any, losses: deque[float], trackers: Any, bar: Any) -> None:
    """Does what the loop does besides computing and moving weights."""
    from tunerun.train import health, loop

    for _ in range(2):
        assert math.isfinite(result.loss)
    health.check_trained(result.trained_tokens, step=1, samples=result.samples)
    loop._warn_of_spike(job, progress.step, result, losses)
    bar.advance(note=f"loss {result.loss:.4f}")
    progress = loop._advance(progress, result)
    loop._log(trackers, progress, loop._metrics([result], progress, job))


def costs(steps: int) -> tuple[float, float]:
    """Returns the median CPU seconds of a step, and those of its guards."""
    import bench_train

    from tunerun.base_model import read_base
    from tunerun.plan import steps as plans
    from tunerun.progress import Progress
    from tunerun.train import loop, stage, trackers
    from tunerun.train.checkpoint import Progressed
    from tunerun.train.health import SPIKE_WINDOW
    from tunerun.train.ranks import Ranks

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bench_train.build(folder, threads=1, epochs=steps // 8 + 1, precision="fp32")
        step = plans.from_json(json.loads((folder / "packed.json").read_text()))
        stage.set_determinism(deterministic=True, threads=1)
        job, _ = stage._prepare(step, read_base(folder / "packed"), folder / "packed", {}, None, Ranks())
        job.network.train()
        opened = trackers.open_trackers(step, folder / "packed", after_step=0)
        losses = deque[float]([1.0 + 0.001 * number for number in range(SPIKE_WINDOW)], maxlen=SPIKE_WINDOW)
        whole, apart = [], []
        with Progress("train", total=steps, unit="steps") as bar:
            for index in range(steps):
                began = time.process_time()
                result = loop.optimiser_step(job, index)
                between = time.process_time()
                guards(job, result, Progressed(step=index + 1, seconds=1.0), losses, opened, bar)
                whole.append(between - began)
                apart.append(time.process_time() - between)
        for tracker in opened:
            tracker.close()
    return statistics.median(whole), statistics.median(apart)


def main() -> int:
    """Prints the share; returns 1 when it is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--limit", type=float, default=0.02)
    options = parser.parse_args()
    whole, apart = costs(options.steps)
    share = apart / (whole + apart)
    print(f"step {whole * 1e3:.2f} CPU ms, guards and metrics {apart * 1e3:.3f} CPU ms: {share:.2%} of the whole")
    return int(share > options.limit)


if __name__ == "__main__":
    sys.exit(main())
