"""`tunerun sweep best DIR [NAME]` and `tunerun sweep show DIR`: what came of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tunerun import artifacts
from tunerun.commands import arguments, copy
from tunerun.config.flat import flat_recipe
from tunerun.errors import ExitCode, Problem, UserError
from tunerun.run import rundir
from tunerun.sweep import table

_USAGE = "say what of which sweep: tunerun sweep best outputs/sweeps/ID [NAME], or tunerun sweep show outputs/sweeps/ID"


def main(argv: Sequence[str]) -> int:
    """Prints a sweep's table, or writes its winner as a recipe.

    Args:
        argv: `show` or `best`, the directory of a sweep, and for `best` optionally a name for the recipe.

    Raises:
        UserError: The folder is no sweep, or no trial ended well.
    """
    _, rest = arguments.split(argv, flags=(), values=())
    if len(rest) < 2 or rest[0] not in ("best", "show") or len(rest) > (3 if rest[0] == "best" else 2):
        raise UserError(_USAGE)
    sweep_dir = Path(rest[1])
    rows, metric = table.read(sweep_dir)
    if rest[0] == "show":
        print(table.render(rows, metric))
        return ExitCode.DONE
    winner = table.best(rows, metric)
    if winner is None:
        raise UserError(Problem(where=str(sweep_dir), what=f"no trial ended well with a {metric}."))
    config = rundir.load_config(sweep_dir / str(winner.trial))
    target = copy.target(rest[2] if len(rest) == 3 else f"{config.name}-best")
    comment = f"The best of {len(rows)} trials by {metric} ({winner.metrics[metric]:.5g})."
    artifacts.write_text(target, flat_recipe(replace(config, name=None, run_dir=None), comment))
    print(" ".join(f"{key}={value}" for key, value in winner.parameters.items()))
    print(f"{target}: run it with tunerun +recipe={target.stem}")
    return ExitCode.DONE
