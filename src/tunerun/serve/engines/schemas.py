"""How large a JSON schema may be that llama.cpp makes a grammar of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Repetitions are written out, one inside the other, and read by recursion.
_MOST_REPETITIONS = 200
_REPETITION_KEYS = ("minItems", "maxItems", "minLength", "maxLength")
_PATTERN_KEY = "pattern"
_QUANTIFIER = re.compile(r"\{([0-9, ]*)\}")
_NUMBER = re.compile(r"[0-9]+")
_MOST_DEPTH = 32


class SchemaFault(ValueError):  # noqa: N818 (what is wrong with a request)
    """A JSON schema that no grammar can be made of."""


def check_size(value: Any, depth: int = 0) -> None:
    """Raises when a schema, or a part of it at some depth, is too deep or repeats too much.

    Raises:
        SchemaFault: It says what.
    """
    if depth > _MOST_DEPTH:
        raise SchemaFault(f"The JSON schema is nested more than {_MOST_DEPTH} deep.")
    if isinstance(value, list):
        for item in value:
            check_size(item, depth + 1)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if any(count > _MOST_REPETITIONS for count in _counts(key, item)):
                raise SchemaFault(f"`{key}` in the JSON schema repeats something more than {_MOST_REPETITIONS} times.")
            check_size(item, depth + 1)


def _counts(key: str, value: Any) -> list[int]:
    """Returns how often a key of a schema repeats something."""
    if key in _REPETITION_KEYS and isinstance(value, int | float):
        return [int(value)]
    if key == _PATTERN_KEY and isinstance(value, str):
        return [int(number) for found in _QUANTIFIER.findall(value) for number in _NUMBER.findall(found)]
    return []
