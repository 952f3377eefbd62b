"""`tunerun -m +recipe=... key=a,b,c`: runs every point of a grid, each in a directory of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunerun import artifacts, redact
from tunerun.commands import arguments
from tunerun.commands.prepare import OUTPUTS, Prepared, prepare, require_ready
from tunerun.config import typed
from tunerun.config.register import new_run_id
from tunerun.config.resolve import resolve
from tunerun.errors import ExitCode, Problem, TunerunError, UserError
from tunerun.run import inspect, record, results, runner
from tunerun.sweep import measures, table, trials
from tunerun.sweep.table import Row
from tunerun.sweep.trials import Trial

# What a trial is measured by; the rest can wait for the winner.
_TRIAL_STAGES = ("data", "train", "eval")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    """A trial and what it will do."""

    trial: Trial
    prepared: Prepared
    whole: Prepared
    """With all stages; the same as `prepared` unless the best one only is finished."""


def main(argv: Sequence[str]) -> int:
    """Checks the whole grid, then runs its points in order.

    Args:
        argv: Overrides, `-m`, and `--config-dir FOLDER`.

    Returns:
        The exit code: 1 when any trial failed, 75 when a signal stopped the sweep.

    Raises:
        UserError: A point is wrong; nothing was started then.
    """
    options, overrides = arguments.split(argv, flags=("-m", "--multirun"), values=("--config-dir", "-cd"))
    if any(item.partition("=")[0].lstrip("+") == "run_dir" for item in overrides):
        raise UserError("run_dir cannot be set with -m: each trial has a directory of its own.")
    sweep_dir = (OUTPUTS / "sweeps" / new_run_id()).absolute()
    folder = arguments.config_dir(options)
    found = trials.grid_trials(overrides, folder)
    entries = _entries(found, sweep_dir, folder)
    trials.write(sweep_dir, argv, found)
    return _run_all(entries, sweep_dir)


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
    options, overrides = arguments.split(typed, flags=("-m", "--multirun"), values=("--config-dir", "-cd"))
    folder = arguments.config_dir(options)
    found = trials.grid_trials(overrides, folder)
    if {trial.digest: trial.number for trial in found} != numbers:
        what = "its arguments now give other trials than they did."
        raise UserError(Problem(where=str(sweep_dir), what=what, fix="Start a new sweep."))
    return _run_all(_entries(found, sweep_dir, folder), sweep_dir)


def _run_all(entries: Sequence[_Entry], sweep_dir: Path) -> int:
    metric = entries[0].prepared.config.sweep.metric
    codes: dict[int, ExitCode] = {}
    for position, entry in enumerate(entries, start=1):
        print(f"trial {position} of {len(entries)}: {' '.join(entry.trial.varied)}", flush=True)
        codes[entry.trial.number] = _run(entry.prepared)
        rows = _write_rows(entries, sweep_dir, codes)
        if codes[entry.trial.number] == ExitCode.PREEMPTED:
            break
    else:
        finished = _finish_best(entries, rows, metric)
        if finished:
            codes |= finished
            rows = _write_rows(entries, sweep_dir, codes)
    print(f"\n{table.render(rows, metric)}\n")
    if ExitCode.PREEMPTED in codes.values():
        print(f"go on: tunerun resume {sweep_dir}")
    elif table.best(rows, metric) is None:
        print(f"no trial ended well with a {metric}: there is no best one")
    else:
        print(f"the best as a recipe: tunerun sweep best {sweep_dir}")
    print(f"sweep: {sweep_dir}")
    if ExitCode.PREEMPTED in codes.values():
        return ExitCode.PREEMPTED
    return ExitCode.DONE if set(codes.values()) == {ExitCode.DONE} else ExitCode.STAGE_FAILED


def _finish_best(entries: Sequence[_Entry], rows: Sequence[Row], metric: str) -> dict[int, ExitCode]:
    """Runs the stages that were left out of the trials for the winner."""
    winner = table.best(rows, metric)
    if winner is None:
        return {}
    entry = next(item for item in entries if item.trial.number == winner.trial)
    if entry.whole is entry.prepared:
        return {}
    print(
        f"best of {len(entries)}: trial {winner.trial} ({' '.join(entry.trial.varied)}); its other stages", flush=True
    )
    return {winner.trial: _run(entry.whole)}


def _run(trial: Prepared) -> ExitCode:
    """Runs a trial; its failure is a result, not the end of the sweep."""
    try:
        return runner.execute(trial.plan, config=trial.config)
    except TunerunError as error:
        print(f"{error}", file=sys.stderr)
        return error.exit_code


def _entries(found: Sequence[Trial], sweep_dir: Path, config_dir: Path | None) -> list[_Entry]:
    """Prepares all trials, so that what is wrong with any is told before the first one starts."""
    entries: list[_Entry] = []
    problems: list[Problem] = []
    secrets = redact.secret_values(os.environ)
    for trial in found:
        try:
            entry = _entry(trial, sweep_dir / str(trial.number), config_dir)
        except UserError as error:
            if not error.problems:
                raise
            problems += error.problems
        else:
            # What is typed is written down before the first trial starts, whose runner would refuse them too.
            problems += redact.problems(typed.flatten(typed.plain(entry.whole.config)), secrets)
            entries.append(entry)
    if problems:
        # What all trials share is told once.
        raise UserError(dict.fromkeys(problems))
    return entries


def _entry(trial: Trial, run_dir: Path, config_dir: Path | None) -> _Entry:
    resolved = resolve(trial.point, config_dir)
    whole = prepare(replace(resolved, config=replace(resolved.config, run_dir=str(run_dir))))
    require_ready(whole)
    if "answer" in whole.config.stages:
        fix = "Collect the answers once, with stages=[answer], and sweep with data.path=RUN/answer/answers.jsonl."
        raise UserError(Problem(where="stages", what="each trial would ask the teacher anew.", fix=fix))
    if not whole.config.sweep.finish_best:
        return _Entry(trial=trial, prepared=whole, whole=whole)
    stages = tuple(stage for stage in resolved.config.stages if stage in _TRIAL_STAGES)
    short = replace(resolved, config=replace(resolved.config, run_dir=str(run_dir), stages=stages))
    return _Entry(trial=trial, prepared=prepare(short), whole=whole)


def _write_rows(entries: Sequence[_Entry], sweep_dir: Path, codes: Mapping[int, ExitCode]) -> list[Row]:
    """Reads what came of all trials so far, and writes the sweep's tables."""
    rows = [_row(entry, sweep_dir, codes) for entry in entries]
    table.write(sweep_dir, rows, entries[0].prepared.config.sweep.metric)
    return rows


def _row(entry: _Entry, sweep_dir: Path, codes: Mapping[int, ExitCode]) -> Row:
    number = entry.trial.number
    folder = sweep_dir / str(number)
    code = codes.get(number)
    if not (folder / artifacts.RECORD).is_file():
        status = "waiting" if code is None else "preempted" if code == ExitCode.PREEMPTED else "failed"
        return Row(
            trial=number, parameters=entry.trial.parameters, status=status, exit_code=code, seconds=0.0, metrics={}
        )
    kept = record.read(folder)
    return Row(
        trial=number,
        parameters=entry.trial.parameters,
        status=inspect.state(folder, kept),
        exit_code=code,
        seconds=inspect.seconds(kept),
        metrics=measures.measure(results.read(folder)),
    )
