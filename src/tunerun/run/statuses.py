"""How a stage ended: from what its worker wrote, or each of its ranks, and from how the process ended."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunerun import artifacts
from tunerun.artifacts import Artifact
from tunerun.errors import ExitCode
from tunerun.launch import process
from tunerun.launch.process import Ended
from tunerun.launch.ranks import STUCK


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a stage ended."""

    code: ExitCode
    error: str | None = None
    """Message of a failure."""
    made: tuple[Artifact, ...] = ()
    died: bool = False
    """Whether a process ended without a word of its own, so that another try may succeed."""
    again: bool = False
    """Whether the stage asks to be started again, with what it found out."""
    shown: bool = True
    """Whether the process has printed the message itself."""


def remove(run_dir: Path, stage: str) -> None:
    """Removes what an earlier execution of a stage left."""
    for file in _files(run_dir, stage):
        file.unlink()


def outcome(run_dir: Path, stage: str, ended: Ended, *, stopped: bool) -> Outcome:
    """Says how a stage ended.

    Args:
        run_dir: The run directory.
        stage: Its name.
        ended: How the process ended; launchers such as torchrun turn every code of a rank into 1.
        stopped: Whether a signal had asked it to stop.
    """
    told = [artifacts.read_json(file) for file in _files(run_dir, stage)]
    again = next((item for item in told if item["again"]), None)
    if again is not None:
        return Outcome(code=ExitCode.STAGE_FAILED, error=again["error"], again=True, shown=False)
    if ended.fault is not None and not (ended.fault == STUCK and _failures(told)):
        return Outcome(code=ExitCode.STAGE_FAILED, error=ended.fault, died=True, shown=False)
    if told:
        return _told(told)
    if stopped:
        return Outcome(code=ExitCode.PREEMPTED, error="stopped before it could save its work", shown=False)
    if ended.exit_code < 0:
        name = process.signal_name(-ended.exit_code)
        hint = " (the system kills processes this way when memory runs out)" if name == "SIGKILL" else ""
        error = f"the stage was killed by {name}{hint}"
    else:
        error = f"the stage ended with code {ended.exit_code} and without a status"
    return Outcome(code=ExitCode.STAGE_FAILED, error=error, died=True, shown=False)


def _told(told: list[Mapping[str, Any]]) -> Outcome:
    """Takes the word of the rank that failed first: others fail because it did."""
    failed = _failures(told)
    first = min(failed, key=lambda item: (item["echo"], item["time"])) if failed else told[0]
    made = tuple(Artifact(**item) for item in first["artifacts"])
    return Outcome(
        code=ExitCode(first["exit_code"]),
        error=first["error"],
        made=made,
        again=first["again"],
        shown=first is told[0] and not first["again"],
    )


def _failures(told: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [item for item in told if item["exit_code"] not in (ExitCode.DONE, ExitCode.PRUNED, ExitCode.PREEMPTED)]


def _files(run_dir: Path, stage: str) -> list[Path]:
    """Returns the files of the ranks of a stage, in order."""
    numbered = [
        (int(match[1] or 0), file)
        for file in (run_dir / artifacts.STATUS).glob(f"{stage}*.json")
        if (match := re.fullmatch(rf"{stage}(?:-(\d+))?\.json", file.name))
    ]
    return [file for _, file in sorted(numbered)]
