"""Fills `{{name}}` placeholders, and finds those that nobody filled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tunerun.data.rows import RowFault

_PLACEHOLDER = re.compile(r"\{\{[ \t]*([A-Za-z_][A-Za-z0-9_]*)[ \t]*\}\}")

# Code, LaTeX and markup have such braces too: between backticks, or beside a letter or a sign of their own.
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_FORGOTTEN = re.compile(r"(?<![A-Za-z0-9\\^_{}$=<>/#&%])\{\{([A-Za-z_][A-Za-z0-9_]*)\}\}(?![{}$=<>^_/\[(])")
_TAG = re.compile(r"</?[A-Za-z][^<>\n]*>")


def fill(value: Any, variables: Mapping[str, str], *, strict: bool) -> Any:
    """Fills `{{name}}` placeholders in every text of a row.

    Args:
        value: A JSON value.
        variables: Text by name.
        strict: Whether a `{{name}}` without a value is a fault where it stands like a word. In code between backticks,
            in a line with markup, written with spaces, or beside a letter or a sign of LaTeX or code, it is left alone.

    Raises:
        RowFault: A placeholder has no value.
    """
    if isinstance(value, str):
        return _fill_text(value, variables, strict) if "{{" in value else value
    if isinstance(value, dict):
        return {key: fill(item, variables, strict=strict) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, variables, strict=strict) for item in value]
    return value


def _fill_text(text: str, variables: Mapping[str, str], strict: bool) -> str:
    # What a value brings along is not looked at: it is what the user wants to read.
    name = next((name for name in _forgotten(text) if name not in variables), None) if strict else None
    if name is not None:
        raise RowFault("unfilled-placeholder", f"{{{{{name}}}}} has no value.")
    return _PLACEHOLDER.sub(lambda match: variables.get(match[1], match[0]), text)


def _forgotten(text: str) -> list[str]:
    prose = _CODE.sub("``", text)
    return [match[1] for line in prose.split("\n") if not _TAG.search(line) for match in _FORGOTTEN.finditer(line)]
