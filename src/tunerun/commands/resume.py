"""`tunerun resume RUN [key=value] [--allow KEY]`: goes on with a run, or a sweep, that stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tunerun import artifacts
from tunerun.commands import arguments, sweep
from tunerun.commands.prepare import plan_for, require_ready, start
from tunerun.config import resolve, typed
from tunerun.errors import Problem, UserError
from tunerun.launch.cluster import Typed
from tunerun.plan.steps import Step, TrainStep
from tunerun.run import record, rundir, submit
from tunerun.run.summary import short


def main(argv: Sequence[str]) -> int:
    """Reads the run's config and runs what is not finished.

    Args:
        argv: Run directory, overrides, and `--allow KEY` for keys that may differ from those it was trained with.

    Returns:
        The exit code.

    Raises:
        UserError: The folder is no run, or a key is wrong.
    """
    options, rest = arguments.split(argv, flags=(), values=("--allow",))
    folders = [item for item in rest if "=" not in item]
    overrides = [item for item in rest if "=" in item]
    named = Path(arguments.one(folders, "the directory of a run"))
    if artifacts.is_sweep(named):
        return sweep.resume(named.absolute(), [*overrides, *options])
    if any(item.partition("=")[0].lstrip("+") == "run_dir" for item in overrides):
        raise UserError("run_dir cannot be changed: the run goes on where it is.")
    if (named / artifacts.RECORD).is_file() and record.read(named).status == "pruned":
        what = "was ended by its sweep, because other trials are better; its training cannot go on."
        fix = f"To run it to its end: tunerun replay {short(named)}"
        raise UserError(Problem(where=str(named), what=what, fix=fix))
    config = resolve.rebuild(typed.plain(rundir.load_config(named)), overrides)
    prepared = plan_for(replace(config, run_dir=str(named.absolute())))
    require_ready(prepared)
    allow = frozenset(options.get("--allow", ()))
    plan = replace(prepared.plan, steps=tuple(_allowing(step, allow) for step in prepared.plan.steps))
    typed_here = Typed(arguments=tuple(overrides), directory=Path.cwd(), allow=allow)
    if prepared.is_queued and prepared.config.cluster.kind == "skypilot":
        typed_here = submit.continued(named, typed_here)
    return start(replace(prepared, plan=plan), typed_here)


def _allowing(step: Step, allow: frozenset[str]) -> Step:
    return replace(step, allow=tuple(sorted(allow))) if isinstance(step, TrainStep) else step
