"""Finds the format of a file from its first row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunerun.data.rows import Row
from tunerun.errors import Problem, UserError

PARTS = ("system", "user", "assistant", "text")

# Column names that mean a prompt and its answer, whatever their case; the first that fits is taken.
_PAIRS = (
    ("question", "answer"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("query", "response"),
    ("instruction", "response"),
    ("input", "output"),
    ("user", "assistant"),
    ("问题", "答案"),
    ("问题", "回答"),
)
_COLUMNS_FIX = "Name them: data.columns={user: PROMPT_COLUMN, assistant: ANSWER_COLUMN}."


@dataclass(frozen=True, slots=True)
class Format:
    """How the rows of a file are read."""

    name: str
    """One of `normalise.PARSERS`."""
    why: str
    """What it was found by."""
    columns: Mapping[str, str]
    """Column of each part, for the format `columns`."""

    @property
    def chat(self) -> bool:
        """Whether rows are conversations, not plain text."""
        return self.name != "text" and "text" not in self.columns


def format_of(row: Row, name: str, columns: Mapping[str, str]) -> Format:
    """Returns how the rows of a file are read.

    Args:
        row: Its first row.
        name: The format as the user named it; `auto` finds it.
        columns: Column of each part as the user named them.

    Raises:
        UserError: Columns do not exist or are not used by the format, or no format fits the row.
    """
    if name not in ("auto", "columns"):
        if columns:
            what = f"is not used by data.format={name}."
            raise UserError(Problem(where="data.columns", what=what, fix="Remove one of them."))
        return Format(name, "data.format names it", {})
    return _named(row, columns) if columns or name == "columns" else detect(row)


def detect(row: Row) -> Format:
    """Finds the format of a file.

    Args:
        row: Its first row.

    Raises:
        UserError: The rows are of a kind that is not imitated, or nothing is known about them.
    """
    value = row.value
    if isinstance(value, str):
        return Format("text", "plain text lines", {})
    if not isinstance(value, dict):
        raise UserError(Problem(where=_place(row), what="the row is neither an object nor a line of text."))
    _refuse_preferences(row, value)
    for name, keys in _SIGNS.items():
        if all(key in value for key in keys):
            return Format(name, f"keys {', '.join(keys)}", {})
    lower = {key.strip().lower(): key for key in value}
    for user, assistant in _PAIRS:
        if user in lower and assistant in lower:
            found = {"user": lower[user], "assistant": lower[assistant]}
            if "system" in lower:
                found["system"] = lower["system"]
            return Format("columns", f"columns {', '.join(found.values())}", found)
    if "text" in value:
        return Format("text", "key text", {})
    what = f"no known format has the keys {_list(value)}."
    raise UserError(Problem(where=_place(row), what=what, fix=_COLUMNS_FIX))


# Keys that a format's rows have; the order decides.
_SIGNS = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "xtuner": ("conversation",),
    "alpaca": ("instruction", "output"),
}


def _named(row: Row, columns: Mapping[str, str]) -> Format:
    problems = [
        Problem(where=f"data.columns.{part}", what="is not a part of a row.", fix=f"Parts are {', '.join(PARTS)}.")
        for part in columns
        if part not in PARTS
    ]
    if "text" not in columns and not {"user", "assistant"} <= columns.keys():
        problems.append(Problem(where="data.columns", what="needs `user` and `assistant`, or `text`."))
    keys = list(row.value) if isinstance(row.value, dict) else []
    problems += [
        Problem(where=f"data.columns.{part}", what=f"{row.file} has no column {column!r}; it has {_list(keys)}.")
        for part, column in columns.items()
        if column not in keys
    ]
    if problems:
        raise UserError(problems)
    return Format("columns", "data.columns names them", columns)


def _refuse_preferences(row: Row, value: Mapping[str, Any]) -> None:
    pairs = "chosen" in value and "rejected" in value
    labelled = "label" in value and isinstance(value["label"], bool) and "messages" in value
    if pairs or labelled:
        kind = "preference pairs (`chosen`, `rejected`)" if pairs else "labelled answers (`label`), bad ones among them"
        fix = "Train on them with a preference objective such as dpo, or name the columns by data.columns."
        raise UserError(Problem(where=_place(row), what=f"the rows are {kind}, not examples to imitate.", fix=fix))


def _place(row: Row) -> str:
    return f"{row.file}:{row.line}"


def _list(keys: Any) -> str:
    return ", ".join(f"`{key}`" for key in keys) or "none"
