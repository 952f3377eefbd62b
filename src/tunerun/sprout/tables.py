"""Reads the text tables beside this file: one row a line, columns separated by `|`, a first line that names them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).with_name("tables")

Row = tuple[str, ...]


@cache
def rows(name: str) -> tuple[Row, ...]:
    """Returns the rows of `tables/<name>.txt`; spaces around a column do not count."""
    lines = (_FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return tuple(tuple(column.strip() for column in line.split("|")) for line in lines if not line.startswith("#"))


def words(name: str) -> tuple[str, ...]:
    """Returns the words of a table that has but one column, whatever its lines."""
    return tuple(word for (line,) in rows(name) for word in line.split())
