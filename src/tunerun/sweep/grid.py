"""Expands `key=a,b,c` into the points of a grid, with Hydra's own grammar."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override

from tunerun.config import overrides
from tunerun.config.resolve import option_names
from tunerun.errors import Problem, UserError


def expand(arguments: Sequence[str], groups: frozenset[str], config_dir: Path | None = None) -> list[list[str]]:
    """Returns the overrides of each point, in the order of the arguments, the last one fastest.

    Args:
        arguments: Overrides as typed; `key=a,b`, `key=range(1,4)` and `group=glob(q*)` are axes.
        groups: Names of the config groups.
        config_dir: A further folder of configs, whose options `glob` finds too.

    Raises:
        UserError: An override cannot be read, or an axis has no values.
    """
    found = (overrides.parse_problem(item, groups, several=True) for item in arguments)
    problems = [problem for problem in found if problem is not None]
    if problems:
        raise UserError(problems)
    parser = OverridesParser.create()
    axes = [_values(item, parser.parse_override(overrides.prepare(item, groups)), config_dir) for item in arguments]
    return [list(point) for point in product(*axes)]


def _values(typed: str, parsed: Override, config_dir: Path | None) -> list[str]:
    if not parsed.is_sweep_override():
        return [typed]
    key = parsed.get_key_element().lstrip("+")
    value: object = parsed.value()
    if isinstance(value, Glob):
        found = value.filter(option_names(key, config_dir))
        if not found:
            raise UserError(Problem(where=typed, what="matches nothing."))
        return [f"{key}={name}" for name in found]
    if not parsed.is_discrete_sweep():
        fix = "Write key=a,b,c or key=range(1,4)."
        raise UserError(Problem(where=typed, what="a grid needs values it can count.", fix=fix))
    points = [f"{key}={text}" for text in parsed.sweep_string_iterator()]
    if not points:
        raise UserError(Problem(where=typed, what="has no values."))
    return points
