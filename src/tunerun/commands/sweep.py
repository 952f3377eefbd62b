"""`tunerun -m +recipe=... key=a,b,c`: runs every point of a grid, each in a directory of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tunerun import artifacts
from tunerun.commands import arguments
from tunerun.commands.prepare import OUTPUTS, Prepared, prepare, require_ready
from tunerun.config.register import new_run_id
from tunerun.config.resolve import group_names, resolve
from tunerun.errors import ExitCode, TunerunError, UserError
from tunerun.run import runner
from tunerun.sweep.grid import expand


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
    points = expand(overrides, group_names())
    trials = [_prepare(point, sweep_dir / str(number), options) for number, point in enumerate(points)]
    results: list[dict[str, object]] = []
    for number, (point, trial) in enumerate(zip(points, trials, strict=True)):
        varied = [item for item in point if item not in overrides]
        print(f"trial {number + 1} of {len(trials)}: {' '.join(varied)}", flush=True)
        code = _run(trial)
        results.append({"trial": number, "overrides": varied, "exit_code": int(code)})
        artifacts.write_json(sweep_dir / "results.json", {"schema": 1, "trials": results})
        if code == ExitCode.PREEMPTED:
            break
    print(f"sweep: {sweep_dir}")
    codes = {result["exit_code"] for result in results}
    if ExitCode.PREEMPTED in codes:
        return ExitCode.PREEMPTED
    return ExitCode.DONE if codes == {ExitCode.DONE} else ExitCode.STAGE_FAILED


def _run(trial: Prepared) -> ExitCode:
    """Runs a trial; its failure is a result, not the end of the sweep."""
    try:
        return runner.execute(trial.plan, config=trial.config)
    except TunerunError as error:
        print(f"{error}", file=sys.stderr)
        return error.exit_code


def _prepare(point: list[str], run_dir: Path, options: dict[str, list[str]]) -> Prepared:
    resolved = resolve(point, arguments.config_dir(options))
    prepared = prepare(replace(resolved, config=replace(resolved.config, run_dir=str(run_dir))))
    require_ready(prepared)
    return prepared
