"""Builds frozen dataclasses from plain data, and plain data from them.

The one place where values are checked against the annotations of a schema: composed configs and JSON plans both come
through here. Every fault is collected, none is raised, so that a user sees all of them at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, TypeVar, Union

from tunerun.errors import Problem

_T = TypeVar("_T")


class UnknownKey(Problem):
    """A key that the schema does not have."""


def build(cls: type[_T], data: Mapping[str, Any], path: str = "") -> tuple[_T | None, list[Problem]]:
    """Builds a dataclass from a mapping.

    Args:
        cls: A dataclass whose fields are bool, int, float, str, Literal, unions with None, tuples, mappings or
            further dataclasses.
        data: Values by field name; missing ones take the field's default.
        path: Dotted key of `data` in the whole, for messages.

    Returns:
        The value, in which faulty keys have their defaults so that the rest can be checked as well, and all
        problems found. The value is None when a key without a default is missing or faulty.
    """
    problems: list[Problem] = []
    return _dataclass(cls, data, path, problems), problems


def plain(value: Any) -> Any:
    """Turns a value built by `build` into dicts, lists and scalars that JSON and YAML can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def flatten(data: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Turns nested mappings into one of dotted keys; an empty mapping stays a value."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        dotted = f"{path}.{key}" if path else key
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, dotted))
        else:
            flat[dotted] = value
    return flat


def shown(value: Any) -> str:
    """Returns a value as a user writes it: `null` and `true` rather than Python's names."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value)


@cache
def field_types(cls: type) -> dict[str, Any]:
    """Returns the resolved annotation of each field."""
    return typing.get_type_hints(cls)


def default_of(item: dataclasses.Field[Any]) -> Any:
    """Returns the default of a field that has one."""
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()


def has_default(item: dataclasses.Field[Any]) -> bool:
    """Says whether a field may be left out."""
    return item.default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING


def nearest(name: str, names: Sequence[str]) -> str:
    """Returns a clause that suggests the most similar names, or lists them all when none is near."""
    lower = name.lower()
    longer = [known for known in sorted(names) if len(lower) > 1 and known.startswith(lower)]
    close = (longer + [near for near in difflib.get_close_matches(lower, names, n=3) if near not in longer])[:6]
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"Known: {', '.join(sorted(names)) or 'none'}."


def _dataclass(cls: Any, data: Any, path: str, problems: list[Problem]) -> Any:
    if not isinstance(data, Mapping):
        problems.append(Problem(where=path, what=f"{shown(data)} is not a section of keys."))
        return None
    annotations = field_types(cls)
    values: dict[str, Any] = {}
    for key, item in data.items():
        dotted = f"{path}.{key}" if path else str(key)
        if key not in annotations:
            what = f"there is no key `{key}`" + (f" in `{path}`." if path else ".")
            problems.append(UnknownKey(where=dotted, what=what, fix=nearest(str(key), list(annotations))))
            continue
        before = len(problems)
        value = _convert(annotations[key], item, dotted, problems)
        if len(problems) == before or dataclasses.is_dataclass(value):
            values[key] = value
    missing = [item.name for item in dataclasses.fields(cls) if item.name not in data and not has_default(item)]
    problems.extend(Problem(where=f"{path}.{name}".lstrip("."), what="is missing.") for name in missing)
    required = {item.name for item in dataclasses.fields(cls) if not has_default(item)}
    return cls(**values) if required <= values.keys() else None


def _convert(annotation: Any, value: Any, path: str, problems: list[Problem]) -> Any:
    origin = typing.get_origin(annotation)
    if origin in (Union, types.UnionType):
        return _union(typing.get_args(annotation), value, path, problems)
    if origin is Literal:
        return _choice(typing.get_args(annotation), value, path, problems)
    if origin is tuple:
        return _sequence(typing.get_args(annotation)[0], value, path, problems)
    if origin is not None and issubclass(origin, Mapping):
        name, member = typing.get_args(annotation)
        return _mapping(name, member, value, path, problems)
    if dataclasses.is_dataclass(annotation):
        return _dataclass(annotation, value, path, problems)
    return _scalar(annotation, value, path, problems)


def _union(options: tuple[Any, ...], value: Any, path: str, problems: list[Problem]) -> Any:
    if value is None and type(None) in options:
        return None
    members = [option for option in options if option is not type(None)]
    assert len(members) == 1, f"{path}: the schema uses a union that has no conversion"
    return _convert(members[0], value, path, problems)


def _choice(options: tuple[Any, ...], value: Any, path: str, problems: list[Problem]) -> Any:
    if value in options and not isinstance(value, bool):
        return value
    # YAML and Hydra read a bare `off` as false.
    if value is False and "off" in options:
        return "off"
    fix = nearest(str(value), [str(option) for option in options])
    problems.append(Problem(where=path, what=f"{shown(value)} is not one of its values.", fix=fix))
    return None


def _sequence(member: Any, value: Any, path: str, problems: list[Problem]) -> Any:
    if value is None:
        problems.append(Problem(where=path, what="null is not a list.", fix="Write [] for none."))
        return None
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(_convert(member, item, f"{path}[{index}]", problems) for index, item in enumerate(items))


def _mapping(name: Any, member: Any, value: Any, path: str, problems: list[Problem]) -> Any:
    if not isinstance(value, Mapping):
        problems.append(Problem(where=path, what=f"{shown(value)} is not a mapping.", fix="Write {key: value}."))
        return None
    found: dict[str, Any] = {}
    for key, item in value.items():
        if typing.get_origin(name) is not Literal or key in typing.get_args(name):
            found[str(key)] = _convert(member, item, f"{path}.{key}", problems)
        else:
            fix = nearest(str(key), typing.get_args(name))
            problems.append(Problem(where=f"{path}.{key}", what=f"there is no `{key}` in `{path}`.", fix=fix))
    return found


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _scalar(annotation: Any, value: Any, path: str, problems: list[Problem]) -> Any:
    if annotation is Any:
        return value
    assert annotation in _NAMES, f"{path}: the schema uses {annotation}, which has no conversion"
    if annotation is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is annotation and not (annotation is float and not math.isfinite(value)):
        return value
    problems.append(Problem(where=path, what=f"{shown(value)} is not {_NAMES[annotation]}."))
    return None
