"""`tunerun -m +recipe=... key=a,b,c`: runs many trials, each in a directory of its own; Hydra's sweeper says which."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tunerun.commands import arguments, array, drive
from tunerun.commands.drive import Request
from tunerun.commands.prepare import OUTPUTS
from tunerun.config import overrides as grammar
from tunerun.config.register import new_run_id
from tunerun.config.resolve import multirun
from tunerun.errors import ExitCode, TunerunError, UserError
from tunerun.sweep import trials
from tunerun.sweep.table import Table

FLAGS = ("-m", "--multirun")


def main(argv: Sequence[str]) -> int:
    """Starts a sweep.

    Args:
        argv: Overrides, `-m`, and `--config-dir FOLDER`.

    Returns:
        The exit code: 1 when any trial failed, 75 when a signal stopped the sweep.

    Raises:
        UserError: A point that is checked beforehand is wrong; nothing was started then.
    """
    _, overrides = arguments.split(argv, flags=FLAGS, values=arguments.CONFIG_DIR)
    if any(item.partition("=")[0].lstrip("+") == "run_dir" for item in overrides):
        raise UserError("run_dir cannot be set with -m: each trial has a directory of its own.")
    return ExitCode(_run((OUTPUTS / "sweeps" / new_run_id()).absolute(), argv, None, drive.drive))


def resume(sweep_dir: Path, argv: Sequence[str]) -> int:
    """Goes on with a sweep: trials that are done are skipped, a stopped one goes on, the others are run.

    Args:
        sweep_dir: Of the sweep.
        argv: Further arguments, of which there may be none.

    Raises:
        UserError: The folder is no sweep, or a recipe gives other trials than it did.
    """
    if argv:
        raise UserError("a sweep is resumed as it was started; overrides belong to single trials.")
    typed, numbers = trials.read(sweep_dir)
    return ExitCode(_run(sweep_dir, typed, numbers, drive.drive))


def read(sweep_dir: Path) -> Table:
    """Reads what came of a sweep.

    Of trials that other processes ran in the same search, its storage says what came of them since. When it cannot be
    asked, that is said on stderr.

    Raises:
        UserError: The folder is no sweep.
    """
    kept = array.collect(sweep_dir)
    own = {row.trial: row for row in kept.rows if (sweep_dir / str(row.trial)).is_dir()}
    if all(row.trial in own or row.status != "running" for row in kept.rows):
        return kept
    try:
        typed, numbers = trials.read(sweep_dir)
        now: Table = _run(sweep_dir, typed, numbers, drive.remembered)
    except TunerunError as error:
        print(f"trials of other processes are shown as when this sweep ended: {error}", file=sys.stderr)
        return kept
    found = {row.trial: row for row in (*kept.rows, *now.rows)} | own
    return replace(now, rows=list(found.values()))


def _run(sweep_dir: Path, argv: Sequence[str], numbers: dict[str, int] | None, task: Callable[..., Any]) -> Any:
    options, overrides = arguments.split(argv, flags=FLAGS, values=arguments.CONFIG_DIR)
    folder = arguments.config_dir(options)
    request = Request(
        arguments=tuple(argv),
        search_path=tuple(item for item in overrides if grammar.key_of(item) == "hydra.searchpath"),
        config_dir=folder,
        sweep_dir=sweep_dir,
        numbers=numbers,
    )
    return multirun(overrides, folder, partial(task, request))
