"""`tunerun copy RECIPE [NAME]`: puts a recipe into ./recipes, where it can be changed and goes first."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from tunerun.commands import arguments
from tunerun.config import typed
from tunerun.config.resolve import option_names
from tunerun.config.sources import recipe_file
from tunerun.errors import ExitCode, Problem, UserError


def main(argv: Sequence[str]) -> int:
    """Copies a recipe.

    Args:
        argv: Name of the recipe, and optionally the name of the copy.

    Raises:
        UserError: There is no such recipe, or the target exists.
    """
    _, rest = arguments.split(argv, flags=(), values=())
    if not 1 <= len(rest) <= 2:
        raise UserError("name a recipe, and optionally the name of the copy: tunerun copy qwen2.5-lora mine")
    source = recipe_file(rest[0])
    if source is None:
        fix = typed.nearest(rest[0], option_names("recipe"))
        raise UserError(Problem(where=rest[0] or "''", what="there is no such recipe.", fix=fix))
    name = rest[-1].removesuffix(".yaml")
    if re.fullmatch(r"[A-Za-z][\w.-]*", name) is None:
        fix = "Start with a letter and go on with letters, digits, dots, dashes and underscores."
        raise UserError(Problem(where=name or "''", what="cannot name a recipe.", fix=fix))
    target = Path("recipes") / f"{name}.yaml"
    if target.exists():
        raise UserError(Problem(where=str(target), what="exists already.", fix="Name the copy otherwise."))
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, target)
    print(f"{target}: change it, and run it with tunerun +recipe={target.stem}")
    return ExitCode.DONE
