"""Prepares what a user typed for Hydra's override grammar.

`key=value` becomes `++key=value`, so that a key nobody knows reaches our own check, which names the nearest valid one,
and so that open mappings (`data.vars.name=...`) need no `+`. Groups (`model=...`), deletions and Hydra's own keys stay.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from tunerun.config import typed
from tunerun.config.schema import RunConfig
from tunerun.config.sources import recipe_file
from tunerun.errors import Problem

SECTIONS = frozenset(item.name for item in dataclasses.fields(RunConfig))
_KEY = re.compile(r"(?P<sign>~|\+{0,2})(?P<key>[^=]*)(?P<rest>=.*)?", re.DOTALL)
# What Hydra's lexer takes as a key or a group.
_NAME = re.compile(r"[\w.@:/$-]+", re.ASCII)
# What the lexer takes outside quotes: words, numbers and a few signs.
_READABLE = re.compile(r"[\w/\-\\+.$%*@?|]*", re.ASCII)
# What the grammar reads as a text without quotes.
_WORD = re.compile(r"[A-Za-z_][\w.-]*", re.ASCII)
_CONSTANTS = ("null", "true", "false", "nan", "inf")
_PIECES = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[,\[\]{}:])""")


def prepare(override: str, groups: frozenset[str]) -> str:
    """Returns an override in the form that is given to Hydra.

    Args:
        override: As typed.
        groups: Names of the config groups.
    """
    sign, key, rest = _parts(override)
    if rest is None or sign == "~":
        return override
    if is_hydras(key):
        # A sweeper's keys are checked by ours, too.
        return f"++{key}{rest}" if key.startswith("hydra.sweeper.") else override
    if key == "recipe":
        sign = "+"
    elif key in groups and key in SECTIONS:
        # These groups always have an option, which `+` cannot add to.
        sign = ""
    elif key not in groups and "@" not in key:
        sign = "++"
    return f"{sign}{key}={_readable(key, rest[1:])}"


def is_hydras(key: str) -> bool:
    """Says whether a key or group is Hydra's own, such as `hydra.searchpath`."""
    return re.split(r"[./]", key)[0] == "hydra"


def key_of(override: str) -> str:
    """Returns the key or group that an override names."""
    return _parts(override)[1]


def parse_problem(override: str, groups: frozenset[str], *, several: bool = False) -> Problem | None:
    """Says what is wrong with the syntax of an override, or None.

    Args:
        override: As typed.
        groups: Names of the config groups.
        several: Whether `key=a,b` is allowed, as it is in a sweep.
    """
    sign, key, rest = _parts(override)
    if not key:
        return Problem(where=repr(override), what="names no key.", fix="Write key=value.")
    if rest is None and sign != "~":
        fix = f"Write +recipe={key}." if recipe_file(key) else "Write key=value."
        return Problem(where=override, what="is not a valid override: a value is missing.", fix=fix)
    if _NAME.fullmatch(key) is None:
        fix = "Keys with other characters than a-z, 0-9, `.`, `_` and `-` fit in a recipe only."
        if "[" in key:
            fix = f"A list is set as a whole: {key.partition('[')[0]}=[a,b]."
        return Problem(where=override, what=f"{key} cannot be read as a key.", fix=fix)
    try:
        parsed = OverridesParser.create().parse_override(prepare(override, groups))
    except HydraException as error:
        rest = rest or ""
        # What the grammar would take instead is a list of its own names.
        reason = str(error).splitlines()[0].partition(" expecting ")[0].rstrip(".")
        fix = "Quote values with special characters: 'key=\"a (b)\"'."
        if any(rest.count(first) != rest.count(last) for first, last in ("[]", "{}")):
            reason, fix = "its brackets do not match", "Close each bracket."
        elif "<EOF>" in reason:
            reason, fix = "it ends too early", "Write a value after the last comma, or remove the comma."
        return Problem(where=override, what=f"is not a valid override: {reason}.", fix=fix)
    if sign == "~":
        return None
    if parsed.is_sweep_override():
        fix = f"A list is {key}=[a,b], a text '{key}=\"a,b\"'; `tunerun -m` runs once for each."
        return None if several else Problem(where=override, what="has several values.", fix=fix)
    return _option_problem(override, key, parsed.value(), groups)


def _option_problem(override: str, key: str, value: object, groups: frozenset[str]) -> Problem | None:
    """Says what is wrong with the option that an override chooses, or None."""
    if key != "recipe" and key not in groups:
        return None
    if value in (None, "", []):
        lister = "`tunerun recipes` lists them." if key == "recipe" else f"The options are in conf/{key}."
        return Problem(where=override, what=f"names no {key}.", fix=lister)
    if key == "recipe" and not isinstance(value, str | list):
        return Problem(where=override, what="the name of a recipe starts with a letter.")
    return None


def typed_keys(overrides: list[str], groups: frozenset[str]) -> frozenset[str]:
    """Returns the dotted keys that the user set or deleted on the command line."""
    parts = [_parts(override) for override in overrides]
    # `method={rank: 8}` sets keys, though `method=lora` chooses an option.
    keys = {key for _, key, rest in parts if key not in groups or (rest is not None and rest.startswith("={"))}
    return frozenset(keys - {"recipe"})


def quote(text: str) -> str:
    """Quotes a text for Hydra's grammar."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def spelled(value: Any) -> str:
    """Returns a value as it is written in an override."""
    if isinstance(value, str):
        return value if _WORD.fullmatch(value) and value not in _CONSTANTS else quote(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{spelled(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(spelled(item) for item in value) + "]"
    return typed.shown(value)


def _parts(override: str) -> tuple[str, str, str | None]:
    """Splits an override into its sign, its key, and its value with the equals sign before it."""
    match = _KEY.fullmatch(override)
    assert match is not None, "the pattern takes every text"
    return match["sign"], match["key"], match["rest"]


def _readable(key: str, value: str) -> str:
    """Quotes what Hydra's lexer cannot read, such as Chinese words and file names with brackets."""
    if _parses(key, value):
        return value
    if value[:1] in "[{" or "," in value:
        quoted = "".join(_quote_piece(piece) for piece in _PIECES.split(value))
        return quoted if _parses(key, quoted) else value
    quoted = quote(value)
    return quoted if _parses(key, quoted) else value


def _quote_piece(piece: str) -> str:
    text = piece.strip()
    if not text or text[0] in "\"',[]{}:" or _READABLE.fullmatch(text):
        return piece
    return quote(text)


def _parses(key: str, value: str) -> bool:
    try:
        OverridesParser.create().parse_override(f"++{key}={value}")
    except HydraException:
        return False
    return True


def key_and_value(override: str) -> tuple[str, object]:
    """Splits `key=value` into the key and its parsed value."""
    parsed = OverridesParser.create().parse_override(prepare(override, frozenset()))
    return parsed.key_or_group, parsed.value()
