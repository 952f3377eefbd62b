"""`tunerun copy RECIPE [NAME]`: puts a recipe into ./recipes, where it can be changed and goes first."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from tunerun import artifacts
from tunerun.commands import arguments
from tunerun.config import typed
from tunerun.config.flat import flat_recipe
from tunerun.config.reference import head_comment
from tunerun.config.resolve import compose_config, option_names, plain_config
from tunerun.config.schema import RunConfig
from tunerun.config.sources import recipe_file
from tunerun.errors import ExitCode, Problem, UserError


def main(argv: Sequence[str]) -> int:
    """Copies a recipe.

    Args:
        argv: Name of the recipe, optionally the name of the copy, and `--flat` for one that needs no option files.

    Raises:
        UserError: There is no such recipe, or the target exists.
    """
    options, rest = arguments.split(argv, flags=("--flat",), values=())
    if not 1 <= len(rest) <= 2:
        raise UserError("name a recipe, and optionally the name of the copy: tunerun copy qwen2.5-lora mine")
    source = recipe_file(rest[0])
    if source is None:
        fix = typed.nearest(rest[0], option_names("recipe"))
        raise UserError(Problem(where=rest[0] or "''", what="there is no such recipe.", fix=fix))
    copied = target(rest[-1].removesuffix(".yaml"))
    if "--flat" in options:
        # Unchecked: a recipe may leave the data to the command line.
        config, problems = typed.build(RunConfig, plain_config(compose_config([f"+recipe={source.stem}"])))
        if config is None or problems:
            raise UserError(problems)
        artifacts.write_text(copied, flat_recipe(config, f"{head_comment(source)} Every key of {source.stem}."))
    else:
        copied.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, copied)
    print(f"{copied}: change it, and run it with tunerun +recipe={copied.stem}")
    return ExitCode.DONE


def target(name: str) -> Path:
    """Returns the file of a new recipe of the user.

    Raises:
        UserError: The name is none that a command line can give, or the file exists.
    """
    if re.fullmatch(r"[A-Za-z][\w.-]*", name) is None:
        fix = "Start with a letter and go on with letters, digits, dots, dashes and underscores."
        raise UserError(Problem(where=name or "''", what="cannot name a recipe.", fix=fix))
    file = Path("recipes") / f"{name}.yaml"
    if file.exists():
        raise UserError(Problem(where=str(file), what="exists already.", fix="Name the copy otherwise."))
    return file
