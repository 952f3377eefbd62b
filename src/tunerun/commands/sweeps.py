"""`tunerun sweep best DIR [NAME]` and `sweep show DIR`: what came of a sweep; `sweep wandb ...`: one for its agents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from tunerun import artifacts
from tunerun.commands import arguments, copy, sweep
from tunerun.commands.drive import Request, exported
from tunerun.config.flat import flat_recipe
from tunerun.config.resolve import multirun
from tunerun.config.schema import SweepConfig
from tunerun.errors import ExitCode, Problem, UserError
from tunerun.run import rundir
from tunerun.sweep import table

_USAGE = (
    "say what of which sweep: tunerun sweep best outputs/sweeps/ID [NAME], tunerun sweep show outputs/sweeps/ID, or "
    "tunerun sweep wandb +recipe=NAME key=a,b for a file of wandb's"
)


def main(argv: Sequence[str]) -> int:
    """Prints a sweep's table, writes its winner as a recipe, or prints a sweep file for `wandb sweep`.

    Args:
        argv: `show` or `best`, the directory of a sweep, and for `best` optionally a name for the recipe; or `wandb`
            and what `tunerun -m` takes.

    Raises:
        UserError: The folder is no sweep, or no trial ended well.
    """
    if argv[:1] == ["wandb"]:
        return _wandb(argv[1:])
    _, rest = arguments.split(argv, flags=(), values=())
    if len(rest) < 2 or rest[0] not in ("best", "show") or len(rest) > (3 if rest[0] == "best" else 2):
        raise UserError(_USAGE)
    sweep_dir = Path(rest[1])
    found = sweep.read(sweep_dir)
    if rest[0] == "show":
        print(table.render(found))
        return ExitCode.DONE
    rows, metrics = found.rows, found.metrics
    winner = table.best(rows, metrics)
    if winner is None:
        raise UserError(Problem(where=str(sweep_dir), what=f"{table.why_none(rows, metrics)}."))
    overrides = " ".join(f"{key}={value}" for key, value in winner.parameters.items())
    if not (sweep_dir / str(winner.trial)).is_dir():
        what = f"trial {winner.trial} is the best, and another sweep of the same search ran it."
        fix = f"Name that sweep, or run it again with {overrides}"
        raise UserError(Problem(where=str(sweep_dir), what=what, fix=fix))
    config = rundir.load_config(sweep_dir / str(winner.trial))
    target = copy.target(rest[2] if len(rest) == 3 else f"{config.name}-best")
    measured = ", ".join(f"{name} {winner.metrics[name]:.5g}" for name in metrics)
    # What is left is one run, of no group and with nothing to vary.
    alone = replace(config, name=None, run_dir=None, sweep=SweepConfig(), track=replace(config.track, group=None))
    artifacts.write_text(target, flat_recipe(alone, f"The best of {len(rows)} trials ({measured})."))
    if overrides:
        print(overrides)
    print(f"{target}: run it with tunerun +recipe={target.stem}")
    return ExitCode.DONE


def _wandb(argv: Sequence[str]) -> int:
    options, overrides = arguments.split(argv, flags=sweep.FLAGS, values=arguments.CONFIG_DIR)
    folder = arguments.config_dir(options)
    request = Request(arguments=tuple(argv), search_path=(), config_dir=folder, sweep_dir=Path(), numbers=None)
    print(multirun(overrides, folder, partial(exported, request)), end="")
    return ExitCode.DONE
