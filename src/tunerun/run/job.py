"""job.json: the job that a run was queued as, and what its state says about the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tunerun import artifacts
from tunerun.config import typed
from tunerun.errors import UserError
from tunerun.launch import slurm
from tunerun.run.record import Record

SCHEMA = 1

STATES = ("submitted", "queued", "requeued", "cancelled", "timeout", "node_fail", "out_of_memory")
"""States of a run that only its job tells of."""

_UNFINISHED = ("submitted", "running", "preempted")
_WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "SUSPENDED", "STOPPED")
_AT_WORK = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "RESIZING")
ALIVE = (*_WAITING, *_AT_WORK)
"""What Slurm calls the states of a job that is not over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job of Slurm."""

    id: str
    submitted: str
    """ISO 8601, UTC."""


def write(run_dir: Path, job: Job) -> None:
    """Writes job.json."""
    artifacts.write_json(run_dir / artifacts.JOB, {"schema": SCHEMA, **typed.plain(job)})


def read(run_dir: Path) -> Job | None:
    """Reads job.json; None for a run that never was a job.

    Raises:
        UserError: It was written by a newer tunerun, or it is damaged.
    """
    path = run_dir / artifacts.JOB
    if not path.is_file():
        return None
    _, data = artifacts.read_versioned(path, SCHEMA)
    job, problems = typed.build(Job, data, str(path))
    if problems:
        raise UserError(problems)
    return job


def queue(runs: Mapping[Path, Record]) -> dict[str, str]:
    """Asks Slurm, once for all of them, for the states of the jobs of runs that are not over.

    Args:
        runs: Record by run directory.

    Returns:
        State by job, as `slurm.states` gives it.
    """
    jobs = [read(folder) for folder, entry in runs.items() if entry.status in _UNFINISHED]
    return slurm.states([job.id for job in jobs if job is not None])


def state(run_dir: Path, entry: Record, queue: Mapping[str, str]) -> str | None:
    """Returns the state of a run as its job has it; None when the record itself knows better.

    Args:
        run_dir: Of the run, in which no process of this machine works.
        entry: Its record.
        queue: State by job.
    """
    job = read(run_dir) if entry.status in _UNFINISHED else None
    found = None if job is None else queue.get(job.id)
    if found is None:
        return None
    if found in _WAITING:
        return "queued" if entry.status == "submitted" else "requeued"
    if found in _AT_WORK and entry.status != "preempted":
        return "running"
    if entry.status == "preempted":
        return None
    ended = found.lower()
    return ended if ended in STATES else "killed" if entry.status == "running" else "failed"
