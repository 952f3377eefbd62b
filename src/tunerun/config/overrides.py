"""Prepares what a user typed for Hydra's override grammar.

`key=value` becomes `++key=value`, so that a key nobody knows reaches our own check, which names the nearest valid one,
and so that open mappings (`data.vars.name=...`) need no `+`. Groups (`model=...`), deletions and Hydra's own keys stay.
"""

from __future__ import annotations

import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from tunerun.errors import Problem

_KEY = re.compile(r"^(?P<sign>\+{0,2}|~)(?P<key>[^=]*)(?P<rest>=.*)?$", re.DOTALL)
# What the lexer takes outside quotes: words, numbers and a few signs.
_READABLE = re.compile(r"[\w/\-\\+.$%*@?|]*", re.ASCII)
_PIECES = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[,\[\]{}:])""")


def prepare(override: str, groups: frozenset[str]) -> str:
    """Returns an override in the form that is given to Hydra.

    Args:
        override: As typed.
        groups: Names of the config groups.
    """
    match = _KEY.match(override)
    assert match is not None
    sign, key, rest = match["sign"], match["key"], match["rest"]
    if key == "recipe" and rest is not None:
        return "+" + override.lstrip("+")
    if rest is None or sign == "~" or key in groups or "@" in key or key.split(".")[0].split("/")[0] == "hydra":
        return override
    return f"++{key}={_readable(key, rest[1:])}"


def parse_problem(override: str, groups: frozenset[str]) -> Problem | None:
    """Says what is wrong with the syntax of an override, or None."""
    if "=" not in override and not override.startswith("~"):
        return Problem(where=override, what="is not a valid override: a value is missing.", fix="Write key=value.")
    try:
        parsed = OverridesParser.create().parse_override(prepare(override, groups))
    except HydraException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        fix = "Quote values with special characters: 'key=\"a (b)\"'."
        return Problem(where=override, what=f"is not a valid override: {reason}.", fix=fix)
    named = parsed.is_sweep_override() or isinstance(parsed.value(), str | list)
    if parsed.key_or_group == "recipe" and not named:
        return Problem(where=override, what="the name of a recipe starts with a letter.")
    return None


def typed_keys(overrides: list[str], groups: frozenset[str]) -> frozenset[str]:
    """Returns the dotted keys that the user set on the command line."""
    matches = (_KEY.match(override) for override in overrides)
    keys = {match["key"] for match in matches if match is not None and match["rest"] is not None}
    return frozenset(key for key in keys if key not in groups and key != "recipe")


def _readable(key: str, value: str) -> str:
    """Quotes what Hydra's lexer cannot read, such as Chinese words and file names with brackets."""
    if _parses(key, value):
        return value
    if value[:1] in "[{" or "," in value:
        quoted = "".join(_quote_piece(piece) for piece in _PIECES.split(value))
        return quoted if _parses(key, quoted) else value
    quoted = _quote(value)
    return quoted if _parses(key, quoted) else value


def _quote_piece(piece: str) -> str:
    text = piece.strip()
    if not text or text[0] in "\"',[]{}:" or _READABLE.fullmatch(text):
        return piece
    return _quote(text)


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


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
