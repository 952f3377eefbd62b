"""What was run: a table of runs, and one run in detail."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunerun import artifacts, columns
from tunerun.columns import MAX_COLUMNS
from tunerun.errors import Problem, UserError
from tunerun.launch.terminal import duration, size
from tunerun.run import job as jobs
from tunerun.run import record, results, rundir
from tunerun.run.record import Record
from tunerun.run.summary import measured, short

STATES = ("done", "failed", "killed", "preempted", "running", "prepared", *jobs.STATES)
"""States of a run."""

_MAX_PATH_COLUMNS = 48


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Which runs are listed, and in which order."""

    states: tuple[str, ...] = ()
    """Of `STATES`; empty for all."""
    words: tuple[str, ...] = ()
    """Each occurs in the run's name, folder or base model; case does not matter."""
    order: Literal["created", "took", "loss"] = "created"
    """The newest, the longest, or the lowest loss after training first."""


def list_runs(outputs: Path, choice: Choice = Choice()) -> str:
    """Lays out a table of the runs below a folder, at most 100 columns wide.

    Args:
        outputs: Searched with all its folders.
        choice: Which runs, in which order.

    Raises:
        UserError: The folder does not exist.
    """
    if not outputs.is_dir():
        raise UserError(Problem(where=str(outputs), what="is not a folder.", fix="Runs are put into ./outputs."))
    folders = [path.parent for path in outputs.rglob(artifacts.RECORD)]
    runs, unreadable = [], []
    for folder in folders:
        try:
            jobs.read(folder)
            runs.append((record.read(folder), folder, _losses(folder)))
        except UserError as error:
            unreadable += columns.fill(f"skipped: {error}", MAX_COLUMNS, rest="    ")
    queue = jobs.queue({folder: entry for entry, folder, _ in runs})
    states = {folder: state(folder, entry, queue) for entry, folder, _ in runs}
    kept = [run for run in runs if _is_chosen(run[0], run[1], states[run[1]], choice)]
    if not kept:
        what = f"no runs in {outputs}" if not runs else f"none of the {len(runs)} runs in {outputs} is like that"
        return "\n".join([what, *unreadable])
    kept.sort(key=lambda run: run[0].created, reverse=True)
    if choice.order != "created":
        kept.sort(key=lambda run: _rank(run[0], run[2], choice.order))
    rows = [
        (
            entry.created[:16].replace("T", " "),
            states[folder],
            duration(seconds(entry)),
            " -> ".join("not finite" if loss is None else f"{loss:.3g}" for loss in losses),
            short(folder),
        )
        for entry, folder, losses in kept
    ]
    return "\n".join([_table(("created (UTC)", "state", "took", "loss", "run"), rows), *unreadable])


def _is_chosen(entry: Record, folder: Path, now: str, choice: Choice) -> bool:
    about = f"{entry.name} {folder} {(entry.base_model or {'path': ''})['path']}".lower()
    return (not choice.states or now in choice.states) and all(word.lower() in about for word in choice.words)


def _rank(entry: Record, losses: Sequence[float | None], order: str) -> float:
    if order == "took":
        return -seconds(entry)
    # Runs without a loss come last.
    return losses[-1] if losses and losses[-1] is not None else math.inf


def show(run_dir: Path) -> str:
    """Lays out what a run did and made, at most 100 columns wide.

    Raises:
        UserError: It is not a run.
    """
    found = results.read(run_dir)
    entry = found.record
    head = [
        f"{entry.name}: {state(run_dir, entry)}",
        f"  created   {entry.created[:19].replace('T', ' ')} UTC",
    ]
    if found.base_model is not None:
        head.append(columns.cut(f"  base      {found.base_model}", MAX_COLUMNS))
    if entry.invocations:
        head.append(columns.cut(f"  command   {' '.join(entry.invocations[-1].command)}", MAX_COLUMNS))
    job = jobs.read(run_dir)
    if job is not None:
        head.append(f"  job       {job.id} of Slurm, submitted {job.submitted[:19].replace('T', ' ')} UTC")
    stages = [
        (stage, item.status, "" if item.seconds is None else duration(item.seconds), item.error or "")
        for stage, item in entry.stages.items()
    ]
    files = [(item.path, item.kind, size(item.bytes), item.sha256[:12]) for item in _made(entry)]
    blocks = ["\n".join(head)]
    if stages:
        blocks.append(_table(("stage", "state", "took", "error"), stages))
    if files:
        blocks.append(_table(("file", "kind", "size", "sha256"), files))
    blocks += measured(found)
    return "\n\n".join(blocks)


def state(run_dir: Path, entry: Record, queue: Mapping[str, str] | None = None) -> str:
    """Returns a run's state; one that says `running`, holds no lock and is no job was killed.

    Args:
        run_dir: Of the run.
        entry: Its record.
        queue: State of Slurm's jobs; None asks for it.
    """
    if rundir.is_busy(run_dir):
        return "running"
    asked = jobs.queue({run_dir: entry}) if queue is None else queue
    return jobs.state(run_dir, entry, asked) or ("killed" if entry.status == "running" else entry.status)


def _losses(folder: Path) -> list[float | None]:
    """Returns the losses that were measured: of the base model, and of the tuned one."""
    path = folder / artifacts.EVAL / artifacts.STAGE_REPORT
    if not path.is_file():
        return []
    _, found = artifacts.read_versioned(path, artifacts.REPORT_SCHEMA)
    return [item["loss"] for item in found["models"].values()]


def seconds(entry: Record) -> float:
    """Returns how long a run's stages took."""
    return sum(item.seconds for item in entry.stages.values() if item.seconds is not None)


def _made(entry: Record) -> Sequence[artifacts.Artifact]:
    return [item for stage in entry.stages.values() for item in stage.artifacts]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lays rows out below a head; the last column takes the room that is left."""
    short_rows = [[*(columns.cut(cell, _MAX_PATH_COLUMNS) for cell in row[:-1]), row[-1]] for row in [head, *rows]]
    widths = [max(columns.width(row[index]) for row in short_rows) for index in range(len(head) - 1)]
    lines = []
    for row in short_rows:
        cells = [columns.pad(cell, room) for cell, room in zip(row[:-1], widths, strict=True)]
        lines.append(columns.cut("  ".join([*cells, row[-1].replace("\n", " ")]).rstrip(), MAX_COLUMNS))
    return "\n".join(lines)
