"""What a sweep varies: one axis for each key, from the command line in Hydra's grammar or from `sweep.params`."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, RangeSweep

from tunerun.config import overrides, typed
from tunerun.config.resolve import option_names
from tunerun.config.schema import ParameterConfig, RunConfig
from tunerun.errors import Problem, UserError

_LOG = "log"
# A sweep has these once, not each of its trials.
_NOT_VARIED = ("run_dir", "sweep")


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """The values of one key: points in order of trial, or a range of numbers, or both when a range has a step."""

    key: str
    points: tuple[str, ...] = ()
    """As they are written in an override; empty when there are too many to count."""
    low: float | None = None
    """Smallest number; None when the points have no order."""
    high: float | None = None
    step: float | None = None
    log: bool = False
    integer: bool = False
    """Whether the key holds whole numbers."""

    @property
    def ends(self) -> tuple[str, ...]:
        """All choices, or both ends of a range: what is composed before a search starts."""
        if self.low is None or self.high is None:
            return self.points
        return self.text(self.low), self.text(self.high)

    def text(self, value: float) -> str:
        """Returns a number as it is written in an override."""
        return str(int(value)) if self.integer else repr(float(value))


def read(
    arguments: Sequence[str],
    params: Mapping[str, ParameterConfig],
    groups: frozenset[str],
    config_dir: Path | None = None,
) -> list[Axis]:
    """Returns the axes of a sweep: those of the command line in its order, then those of `sweep.params`.

    Args:
        arguments: Overrides as typed: `key=a,b`, `key=choice(a,b)`, `key=range(1,9,2)`, `key=interval(0,1)`,
            `key=tag(log,interval(1e-5,1e-3))` and `group=glob(q*)` are axes; other ones keep a key from being varied.
        params: What the recipe varies.
        groups: Names of the config groups.
        config_dir: A further folder of configs, whose options `glob` finds too.

    Raises:
        UserError: An override cannot be read, or an axis makes no sense; carries every problem.
    """
    found = (overrides.parse_problem(item, groups, several=True) for item in arguments)
    problems = [problem for problem in found if problem is not None]
    if problems:
        raise UserError(problems)
    parser = OverridesParser.create()
    axes: list[Axis] = []
    for item in arguments:
        parsed = parser.parse_override(overrides.prepare(item, groups))
        if parsed.is_sweep_override():
            axes.append(_typed_axis(item, parsed, config_dir))
    typed_keys = {overrides.key_of(item) for item in arguments}
    axes += [_param_axis(key, param) for key, param in params.items() if key not in typed_keys]
    problems = [problem for axis in axes for problem in _problems(axis)]
    problems += [problem for key, param in params.items() for problem in _shape_problems(key, param)]
    if problems:
        raise UserError(problems)
    return axes


def fixed(arguments: Sequence[str], groups: frozenset[str]) -> list[str]:
    """Returns the overrides that are the same in every trial."""
    parser = OverridesParser.create()
    prepared = ((item, parser.parse_override(overrides.prepare(item, groups))) for item in arguments)
    return [item for item, parsed in prepared if not parsed.is_sweep_override()]


def _typed_axis(item: str, parsed: Override, config_dir: Path | None) -> Axis:
    key = parsed.get_key_element().lstrip("+")
    value: object = parsed.value()
    if isinstance(value, Glob):
        names = value.filter(option_names(key, config_dir))
        if not names:
            raise UserError(Problem(where=item, what="matches nothing."))
        return Axis(key=key, points=tuple(names))
    tags: set[str] = getattr(value, "tags", set())
    if tags - {_LOG}:
        what = f"{', '.join(sorted(tags - {_LOG}))} means nothing here."
        raise UserError(Problem(where=item, what=what, fix="The only tag is log."))
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None, "the grammar asks for both"
        return Axis(key=key, low=value.start, high=value.end, log=_LOG in tags, integer=_is_integer(key))
    points = tuple(parsed.sweep_string_iterator())
    if not points:
        raise UserError(Problem(where=item, what="has no values."))
    if isinstance(value, RangeSweep) and not value.shuffle and len(points) > 1:
        numbers = sorted(float(point) for point in points)
        integer = all(number.is_integer() for number in numbers) and _is_integer(key)
        return Axis(
            key=key, points=points, low=numbers[0], high=numbers[-1], step=abs(float(value.step)), integer=integer
        )
    return Axis(key=key, points=points)


def _param_axis(key: str, param: ParameterConfig) -> Axis:
    if param.choices:
        return Axis(key=key, points=tuple(overrides.spelled(choice) for choice in param.choices))
    axis = Axis(key=key, low=param.low, high=param.high, step=param.step, log=param.log, integer=_is_integer(key))
    if param.step is None or param.low is None or param.high is None or param.step <= 0:
        return axis
    # In decimals, so that 0.1 + 0.2 is 0.3.
    low, high, step = (Decimal(repr(number)) for number in (param.low, param.high, param.step))
    values = [float(low + step * index) for index in range(int((high - low) / step) + 1)]
    high_met = values[-1] if values else param.high
    return dataclasses.replace(axis, points=tuple(axis.text(value) for value in values), high=high_met)


def _shape_problems(key: str, param: ParameterConfig) -> list[Problem]:
    where, numbers = f"sweep.params.{key}", (param.low, param.high)
    if param.choices and (numbers != (None, None) or param.step is not None or param.log):
        return [Problem(where=where, what="has choices and a range.", fix="Keep one.")]
    if not param.choices and None in numbers:
        return [Problem(where=where, what="has neither choices nor both ends of a range.", fix="Set low and high.")]
    return []


def _problems(axis: Axis) -> list[Problem]:
    problems: list[Problem] = []
    if axis.key.partition(".")[0] in _NOT_VARIED:
        what = "is the same for all trials of a sweep."
        problems.append(Problem(where=axis.key, what=what, fix="Take it out of what is varied."))
    if axis.low is None or axis.high is None:
        return problems
    if axis.low >= axis.high:
        what = f"a range goes from a smaller to a larger number, not from {axis.low:g} to {axis.high:g}."
        problems.append(Problem(where=axis.key, what=what))
    if axis.log and axis.low <= 0:
        problems.append(Problem(where=axis.key, what=f"a logarithmic range starts above 0, not at {axis.low:g}."))
    if axis.step is not None and (axis.log or axis.step <= 0):
        what = "a step goes with an even range only, and is above 0."
        problems.append(Problem(where=axis.key, what=what, fix="Drop log or the step, or list choices."))
    return problems


def _is_integer(key: str) -> bool:
    """Says whether the schema has whole numbers for a key."""
    annotation: Any = RunConfig
    for name in key.split("."):
        if not isinstance(annotation, type) or not dataclasses.is_dataclass(annotation):
            return False
        known = typed.field_types(annotation)
        if name not in known:
            return False
        annotation = known[name]
    return annotation is int or int in typing.get_args(annotation)
