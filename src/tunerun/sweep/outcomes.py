"""What came of a trial, by what its directory holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tunerun import artifacts
from tunerun.errors import ExitCode
from tunerun.run import inspect, record, results, rundir
from tunerun.sweep import measures
from tunerun.sweep.trials import Outcome


def waiting(trial: int, parameters: Mapping[str, str], status: str, code: int | None) -> Outcome:
    """Returns the outcome of a trial that has done nothing yet."""
    return Outcome(trial=trial, parameters=parameters, status=status, exit_code=code, seconds=0.0, metrics={})


def read(sweep_dir: Path, trial: int, parameters: Mapping[str, str], code: int | None) -> Outcome:
    """Reads what came of a trial.

    Args:
        sweep_dir: Of its sweep.
        trial: Its number.
        parameters: Value by varied key.
        code: How it ended in this execution of the sweep, if it did.
    """
    folder = sweep_dir / str(trial)
    if code is None and rundir.is_busy(folder):
        return waiting(trial, parameters, "running", None)
    if not (folder / artifacts.RECORD).is_file() or not (folder / artifacts.CONFIG).is_file():
        status = "waiting" if code is None else "preempted" if code == ExitCode.PREEMPTED else "failed"
        return waiting(trial, parameters, status, code)
    return of_run(folder, trial, parameters, code)


def of_run(
    folder: Path, trial: int, parameters: Mapping[str, str], code: int | None, queue: Mapping[str, str] | None = None
) -> Outcome:
    """Reads what came of a trial whose directory is that of a run.

    Args:
        folder: The run directory.
        trial: Number of the trial.
        parameters: Value by varied key.
        code: How it ended, if it did.
        queue: State of Slurm's jobs; None asks for it.
    """
    kept = record.read(folder)
    return Outcome(
        trial=trial,
        parameters=parameters,
        status=inspect.state(folder, kept, queue),
        exit_code=code,
        seconds=inspect.seconds(kept),
        metrics=measures.measure(results.read(folder)),
    )
