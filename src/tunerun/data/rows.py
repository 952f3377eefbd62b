"""Rows, what is made of them, and what can be wrong with one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

RowKind = Literal["text", "conversations", "pairs", "labels", "prompts"]
"""What rows are good for: documents, conversations to imitate, a better and a worse answer to one prompt, answers
labelled good or bad, or prompts that a teacher is to answer."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of rows."""

    path: Path
    name: str
    """How messages name it: the path, or for a data set of a hub `org/name/file`."""
    source: str
    """What the report counts it under: the name, or for a data set of a hub what `data.path` says."""
    revision: str | None = None
    """Commit of the data set on its hub."""
    streamed: bool = False
    """Whether it is read from its hub as it comes; `path` is then its place there, and no file."""
    sheet: str | None = None
    """Sheet of a workbook, as `dataset.json` says; that of the source when None."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Column of each part, as `dataset.json` says; those of the source when empty."""
    format: str | None = None
    """How rows are read, as `dataset.json` says; that of the source when None."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row as its file has it."""

    file: str
    line: int
    """Where it starts, counted from 1."""
    value: Any
    """A JSON value; for CSV and workbooks a dict of texts; for plain text the line."""
    letters: Mapping[str, str] | None = None
    """Of a workbook: the name of each column by its letter."""


def column_key(row: Row, column: str) -> str | None:
    """Returns the key in a row that a column's name means, or in a workbook its letter; None when there is none.

    Args:
        row: Any of the file.
        column: As the user wrote it; a name goes before a letter.
    """
    if not isinstance(row.value, dict):
        return None
    letter = column.upper()
    if column in row.value or row.letters is None:
        return column if column in row.value else None
    # A column without a name is in the row under its letter.
    return letter if letter in row.value else row.letters.get(letter)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a usable row is, when its content was taken out."""

    file: str
    line: int
    number: int
    """Of the row in the ledger of usable rows."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used."""

    file: str
    line: int
    reason: str
    """Stable short name; the report counts by it."""
    detail: str
    """One sentence for the user."""


class RowFault(Exception):  # noqa: N818 (a finding about one row, collected by the caller)
    """Says why a row cannot be used; the caller knows which row."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Conversation:
    """A chat row in the one form that all formats are brought to."""

    messages: tuple[Mapping[str, Any], ...]
    """OpenAI chat messages: `content` always a text, tool-call arguments always objects."""
    tools: tuple[Mapping[str, Any], ...] | None
    """Function definitions as `{"type": "function", "function": ...}`, or None."""
    untrained: frozenset[int] = frozenset()
    """Indices of assistant messages that are context only (`"weight": 0`)."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation whose answers are still to be written."""

    messages: tuple[Mapping[str, Any], ...]
    """OpenAI chat messages; those of `asked` say nothing yet."""
    asked: frozenset[int]
    """Indices of the assistant messages to write."""


@dataclass(frozen=True, slots=True)
class Text:
    """A row of plain text."""

    text: str


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt with a better and a worse answer; both conversations begin with it."""

    chosen: Conversation
    rejected: Conversation


@dataclass(frozen=True, slots=True)
class Labelled:
    """A conversation whose last answer is good or bad."""

    conversation: Conversation
    desirable: bool


Content = Text | Conversation | Preference | Labelled
