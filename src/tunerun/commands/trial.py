"""A trial of a sweep made ready: its own directory, group and share of the machine."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from tunerun import machine
from tunerun.commands.prepare import Prepared
from tunerun.config.schema import RunConfig
from tunerun.errors import Problem, UserError
from tunerun.plan.nodes import QUEUED_CLUSTERS
from tunerun.sweep.trials import Trial

_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A trial and what it will do."""

    trial: Trial
    prepared: Prepared
    whole: Prepared
    """With all stages; the same as `prepared` unless the best one only is finished."""


def own(config: RunConfig, sweep_dir: Path, number: int, jobs: int) -> RunConfig:
    """Gives a trial its directory, its group among the trackers' runs, and its share of the cores.

    Args:
        config: As composed.
        sweep_dir: Of the sweep.
        number: Of the trial.
        jobs: Trials that run at a time; on a cluster each has nodes of its own.
    """
    track, hardware = config.track, config.hardware
    if track.group is None:
        track = replace(track, group=sweep_dir.name)
    if jobs > 1 and hardware.threads is None and config.cluster.kind not in QUEUED_CLUSTERS:
        # Results differ in bits between numbers of threads, so the number is part of the trial's config.
        share = max(1, machine.facts().cores // (jobs * (hardware.processes or 1)))
        hardware = replace(hardware, threads=share)
    return replace(config, run_dir=str(sweep_dir / str(number)), track=track, hardware=hardware)


def gpus(prepared: Prepared, slot: int, jobs: int) -> dict[str, str]:
    """Returns the variable that leaves a trial its own GPUs, when several run at a time.

    Raises:
        UserError: There are too few.
    """
    train = prepared.plan.train
    if jobs == 1 or train is None or train.placement.device != "cuda":
        return {}
    each = train.placement.processes
    names = list(train.placement.devices) or (os.environ.get(_VISIBLE) or "").split(",")
    names = names if names != [""] else [str(index) for index in range(len(machine.facts().gpus))]
    if len(names) < jobs * each:
        what = (
            f"{jobs} trials at a time on {each} GPU{'s' * (each > 1)} each need {jobs * each}; there are {len(names)}."
        )
        raise UserError(Problem(where="sweep.jobs", what=what, fix=f"Set sweep.jobs={len(names) // each}."))
    return {_VISIBLE: ",".join(names[slot * each : (slot + 1) * each])}
