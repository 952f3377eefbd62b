"""Several processes that train together, started as torchrun would start them, for any number of trainings in a row."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunerun.plan import steps
from tunerun.plan.deepspeed import deepspeed_config
from tunerun.plan.steps import TrainStep

ROOT = Path(__file__).resolve().parents[3]
ENGINE = "engine.txt"


@dataclass(frozen=True, kw_only=True)
class Training:
    """What the processes are to do."""

    step: TrainStep
    out: Path
    stop_before: int | None = None
    """Optimiser step, from 0, before which all processes give up, as if killed."""
    nan_step: int | None = None
    """Optimiser step, from 0, in which the loss of the last rank is NaN."""


def placed(step: TrainStep, strategy: Any, processes: int, **placement: Any) -> TrainStep:
    """Returns a step as the plan would make it for several processes."""
    where = replace(step.placement, strategy=strategy, processes=processes, threads=1, **placement)
    return replace(step, placement=where, deepspeed=deepspeed_config(where, max_grad_norm=step.train.max_grad_norm))


def environments(world: int) -> list[dict[str, str]]:
    """Returns the environment of each rank of a new group, as torchrun would set it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "PYTHONWARNINGS": "ignore",
        "DS_ACCELERATOR": "cpu",
    }
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def train(trainings: Sequence[Training], folder: Path, *, seconds: float = 240.0) -> None:
    """Runs trainings one after the other in one group of processes.

    Raises:
        AssertionError: A process failed; has what it said.
    """
    world = trainings[0].step.placement.world_size
    folder.mkdir(parents=True, exist_ok=True)
    work = [
        {
            "step": steps.to_json(item.step),
            "out": str(item.out),
            "stop_before": item.stop_before,
            "nan_step": item.nan_step,
        }
        for item in trainings
    ]
    (folder / "work.json").write_text(json.dumps(work))
    processes = []
    for rank, env in enumerate(environments(world)):
        with (folder / f"rank-{rank}.log").open("w") as log:
            command = [sys.executable, "-m", "tests.train.engines.rank", str(folder)]
            processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT))
    try:
        codes = [process.wait(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    told = "\n".join((folder / f"rank-{rank}.log").read_text()[-3000:] for rank in range(world))
    assert codes == [0] * world, told
