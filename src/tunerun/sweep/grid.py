"""Expands `key=a,b,c` into the points of a grid, with Hydra's own grammar."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override

from tunerun import paths
from tunerun.config import overrides
from tunerun.errors import Problem, UserError


def expand(arguments: Sequence[str], groups: frozenset[str]) -> list[list[str]]:
    """Returns the overrides of each point, in the order of the arguments, the last one fastest.

    Args:
        arguments: Overrides as typed; `key=a,b`, `key=range(1,4)` and `group=glob(q*)` are axes.
        groups: Names of the config groups.

    Raises:
        UserError: An override cannot be read, or an axis has no values.
    """
    problems = [problem for item in arguments if (problem := overrides.parse_problem(item, groups)) is not None]
    if problems:
        raise UserError(problems)
    parser = OverridesParser.create()
    axes = [_values(item, parser.parse_override(overrides.prepare(item, groups))) for item in arguments]
    return [list(point) for point in product(*axes)]


def _values(typed: str, parsed: Override) -> list[str]:
    if not parsed.is_sweep_override():
        return [typed]
    key = parsed.get_key_element().lstrip("+")
    value: object = parsed.value()
    if isinstance(value, Glob):
        found = value.filter(_options(key))
        if not found:
            raise UserError(Problem(where=typed, what="matches nothing."))
        return [f"{key}={name}" for name in found]
    return [f"{key}={text}" for text in parsed.sweep_string_iterator()]


def _options(group: str) -> list[str]:
    kind, inner = ("recipes", "") if group == "recipe" else ("conf", group)
    folders = [folder / inner for folder in (*paths.user_folders(kind), paths.shipped(kind))]
    return sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
