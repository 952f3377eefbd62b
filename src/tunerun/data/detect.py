"""Finds how the rows of a file are read, from its first row and what the objective learns from."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from tunerun.config.schema import DATA_PARTS
from tunerun.data.read.index import INDEX
from tunerun.data.rows import Row, RowKind, column_key
from tunerun.errors import Problem, UserError

# Keys that hold a whole conversation as a list, by format.
LISTS = {"messages": "messages", "sharegpt": "conversations", "xtuner": "conversation"}

OPTIONS = "--"
"""Stands for the options `--format` and `--columns` where a section of the config is named."""

# Names of columns, whatever their case; the first that a row has is taken.
_NAMES = {
    "user": ("prompt", "question", "query", "problem", "instruction", "input", "user", "问题"),
    "assistant": ("completion", "response", "answer", "output", "solution", "assistant", "答案", "回答"),
    "system": ("system", "system_prompt"),
    "input": ("input", "context", "question"),
    "chosen": ("chosen", "preferred_output"),
    "rejected": ("rejected", "non_preferred_output"),
    "label": ("kto_tag", "label"),
}

KINDS: tuple[RowKind, ...] = ("conversations", "pairs", "labels", "text")
"""What rows may be, in the order in which a row that could be several is tried."""

Parts = dict[str, str]
"""Key of each part of a row; beside `DATA_PARTS` alpaca's `input`."""


@dataclass(frozen=True, slots=True)
class Format:
    """How the rows of a file are read."""

    name: str
    """How the prompt is written: a value of `data.format` other than `auto`."""
    kind: RowKind
    """What the rows are."""
    why: str
    """What it was found by."""
    columns: Mapping[str, str]
    """Key of each part that is not inside a list of turns."""


def format_of(row: Row, name: str, columns: Mapping[str, str], wanted: Sequence[RowKind], key: str = "data") -> Format:
    """Returns how the rows of a file are read.

    Args:
        row: Its first row.
        name: The format as the user named it; `auto` finds it.
        columns: Column of each part as the user named them; parts that are not named are found.
        wanted: What the objective learns from, the best first.
        key: Where the user named format and columns, for messages: a section such as `data`, or `OPTIONS`.

    Raises:
        UserError: Columns do not exist or do not fit the format, nothing is known about the rows, or they are not what
            the objective learns from.
    """
    value = row.value
    if not isinstance(value, str | dict):
        raise UserError(Problem(where=_place(row), what="the row is neither an object nor a line of text."))
    _check_columns(row, name, columns, key)
    columns = {part: column_key(row, column) or column for part, column in columns.items()}
    if isinstance(value, str):
        found: Format | None = Format("text", "text", "plain text lines", {})
    else:
        found = _find(unwrapped(value), name, columns, wanted)
    if found is None:
        example = _columns(key, _EXAMPLES[wanted[0]])
        if columns or name == "columns":
            what = f"names too few columns for {_NOUNS[wanted[0]]}."
            raise UserError(Problem(where=_setting(key, "columns"), what=what, fix=f"Write {example}."))
        what = f"no known format has the keys {_listed(value)}."
        raise UserError(Problem(where=_place(row), what=what, fix=f"Name them: {example}"))
    if found.kind not in wanted:
        wish = "prompts are wanted" if wanted[0] == "prompts" else f"this objective learns from {_NOUNS[wanted[0]]}"
        what = f"the rows are {_NOUNS[found.kind]} ({found.why}), and {wish}."
        raise UserError(Problem(where=_place(row), what=what, fix=_fix(wanted[0], found, key)))
    return found


def unwrapped(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a row with its messages and tools at the top, where OpenAI's preference rows have them in `input`."""
    request = row.get("input")
    if not isinstance(request, dict) or LISTS["messages"] not in request:
        return row
    return {**{key: value for key, value in row.items() if key != "input"}, **request}


def is_label(value: Any) -> bool:
    """Says whether a value means good or bad beyond doubt; 0 and 1 may as well be classes."""
    return isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in ("true", "false"))


def _check_columns(row: Row, name: str, columns: Mapping[str, str], key: str) -> None:
    keys = row.value if isinstance(row.value, dict) else {}
    problems = []
    for part, column in columns.items():
        where = _setting(key, "columns", part)
        if part not in DATA_PARTS:
            fix = f"Parts are {', '.join(DATA_PARTS)}."
            problems.append(Problem(where=where, what="is not a part of a row.", fix=fix))
        elif part in ("user", "text") and name not in ("auto", "columns"):
            what = f"is not used by {_setting(key, 'format')}{' ' if key == OPTIONS else '='}{name}."
            problems.append(Problem(where=where, what=what, fix="Remove one of them."))
        if column_key(row, column) is None:
            what = f"{row.file} has no column {column!r}; it has {_listed(keys)}."
            problems.append(Problem(where=where, what=what, fix=_near(column, keys)))
    if problems:
        raise UserError(problems)


def _find(row: Mapping[str, Any], name: str, columns: Mapping[str, str], wanted: Sequence[RowKind]) -> Format | None:
    for kind in dict.fromkeys((*wanted, *KINDS)):
        parts = dict(columns)
        form = _FINDERS[kind](row, name, parts)
        if form is not None:
            return Format(form, kind, _why(form, name, columns, parts), parts)
    if name in ("auto", "columns"):
        return None
    # The user is sure: each row says for itself what it lacks.
    assumed = {"user": "instruction", "input": "input", "assistant": "output"} if name == "alpaca" else {}
    sure: RowKind = "text" if name == "text" else "prompts" if wanted[0] == "prompts" else "conversations"
    return Format(name, sure, "data.format names it", {"text": "text"} if name == "text" else {**assumed, **columns})


def _why(form: str, name: str, columns: Mapping[str, str], parts: Mapping[str, str]) -> str:
    if name not in ("auto", "columns"):
        return "data.format names it"
    keys = [LISTS[form]] if form in LISTS else []
    keys += [key for part, key in parts.items() if part not in columns]
    found = f"{'column' if form == 'columns' else 'key'}{'s' * (len(keys) > 1)} {', '.join(keys)}" if keys else ""
    named = f"data.columns names {', '.join(columns.values())}" if columns else ""
    return "; ".join(text for text in (named, found) if text)


def _conversations(row: Mapping[str, Any], name: str, parts: Parts) -> str | None:
    if {"text", "chosen", "rejected", "label"} & parts.keys() or (not parts and _is_judged(row)):
        return None
    form = _prompt(row, name, parts)
    if form in LISTS:
        if "assistant" in parts and parts["assistant"] == LISTS[form]:
            # The user names what the list has anyway.
            del parts["assistant"]
        return form
    return form if form and _take(row, parts, "assistant") else None


def _prompts(row: Mapping[str, Any], name: str, parts: Parts) -> str | None:
    return None if "text" in parts else _prompt(row, name, parts)


def _pairs(row: Mapping[str, Any], name: str, parts: Parts) -> str | None:
    if "text" in parts or not (_take(row, parts, "chosen") and _take(row, parts, "rejected")):
        return None
    return _prompt(row, name, parts)


def _labels(row: Mapping[str, Any], name: str, parts: Parts) -> str | None:
    named = "label" in parts
    if "text" in parts or not _take(row, parts, "label"):
        return None
    value = row[parts["label"]]
    if not (named or is_label(value) or value in (0, 1, "0", "1")):
        return None
    form = _prompt(row, name, parts)
    return form if form in LISTS or (form and _take(row, parts, "assistant")) else None


def _text(row: Mapping[str, Any], name: str, parts: Parts) -> str | None:
    if name in ("auto", "xtuner") and not parts and _is_document(row):
        return "xtuner"
    if name not in ("auto", "text", "columns") or parts.keys() - {"text"}:
        return None
    if "text" in row:
        parts.setdefault("text", "text")
    return "text" if "text" in parts else None


_FINDERS: dict[RowKind, Callable[[Mapping[str, Any], str, Parts], str | None]] = {
    "conversations": _conversations,
    "pairs": _pairs,
    "labels": _labels,
    "text": _text,
    "prompts": _prompts,
}


def _prompt(row: Mapping[str, Any], name: str, parts: Parts) -> str | None:
    """Returns the format of the prompt and takes its keys; None when there is none, or the named one does not fit."""
    if name == "text":
        return None
    if "user" in parts:
        return "columns"
    for form, key in LISTS.items():
        if name in ("auto", form) and key in row:
            return form
    if name in ("auto", "alpaca") and _key(row, ("instruction",)):
        parts["user"] = _key(row, ("instruction",))
        _take(row, parts, "input")
        _take(row, parts, "system")
        return "alpaca"
    if name not in ("auto", "columns"):
        return None
    if _take(row, parts, "user"):
        _take(row, parts, "system")
        return "columns"
    # Answers that are lists of turns may bring their prompt along.
    return "columns" if {"assistant", "chosen"} & parts.keys() else None


def _take(row: Mapping[str, Any], parts: Parts, part: str) -> bool:
    """Finds the key of a part that has none yet; returns whether it has one now."""
    if part not in parts:
        key = _key({key: row[key] for key in row if key not in parts.values()}, _NAMES[part])
        if key:
            parts[part] = key
    return part in parts


def _key(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """Returns the key that has the first of some names a row knows, or nothing."""
    keys = {key.strip().lower(): key for key in row}
    return next((keys[name] for name in names if name in keys), "")


def _is_judged(row: Mapping[str, Any]) -> bool:
    """Whether the answers are labelled, or a pair of answers follows a conversation that the user ends."""
    label = _key(row, _NAMES["label"])
    if label and is_label(row[label]):
        return True
    if not (_key(row, _NAMES["chosen"]) and _key(row, _NAMES["rejected"])):
        return False
    turns = [row[key] for key in LISTS.values() if isinstance(row.get(key), list) and row[key]]
    return bool(turns) and not _is_answer(turns[0][-1])


def _is_answer(turn: Any) -> bool:
    return isinstance(turn, dict) and (turn.get("role") == "assistant" or turn.get("from") in ("gpt", "assistant"))


def _is_document(row: Mapping[str, Any]) -> bool:
    """XTuner writes documents as conversations whose turns have no prompt."""
    turns = row.get("conversation")
    return isinstance(turns, list) and bool(turns) and all(isinstance(t, dict) and t.get("input") == "" for t in turns)


_NOUNS: dict[RowKind, str] = {
    "text": "plain text",
    "conversations": "conversations to imitate",
    "pairs": "pairs of a better and a worse answer",
    "labels": "answers labelled good or bad",
    "prompts": "prompts",
}
_EXAMPLES: dict[RowKind, Parts] = {
    "text": {"text": "COLUMN"},
    "conversations": {"user": "PROMPT_COLUMN", "assistant": "ANSWER_COLUMN"},
    "pairs": {"user": "PROMPT_COLUMN", "chosen": "BETTER_COLUMN", "rejected": "WORSE_COLUMN"},
    "labels": {"user": "PROMPT_COLUMN", "assistant": "ANSWER_COLUMN", "label": "LABEL_COLUMN"},
    "prompts": {"user": "PROMPT_COLUMN"},
}
_OBJECTIVES: dict[RowKind, str] = {"text": "pretrain", "conversations": "sft", "pairs": "dpo", "labels": "kto"}


def _fix(wanted: RowKind, found: Format, key: str) -> str:
    """Says what to do with rows that are not what the objective learns from."""
    if wanted == "prompts":
        return f"Name the column that holds them: {_columns(key, _EXAMPLES[wanted])}"
    other = f"Set objective={_OBJECTIVES[found.kind]}"
    if wanted == "conversations" and found.kind == "pairs":
        return f"{other}, or imitate the better answers: {_columns(key, {'assistant': found.columns['chosen']})}"
    if wanted == "conversations" and found.kind == "labels":
        answer = found.columns["assistant"] if "assistant" in found.columns else LISTS[found.name]
        return f"{other}, or imitate all answers, bad ones too: {_columns(key, {'assistant': answer})}"
    if wanted == "pairs":
        what = "give each row a better and a worse answer"
        named = f"{_setting(key, 'columns')} names them when they have other names"
        return f"{other}, or {what}, `chosen` and `rejected`; {named}."
    if wanted == "labels":
        what = "give each row a `label`, true for a good answer and false for a bad one"
        return f"{other}, or {what}; {_setting(key, 'columns', 'label')} names it when it has another name."
    return f"{other}, or name the columns: {_columns(key, _EXAMPLES[wanted])}"


def _setting(key: str, name: str, part: str = "") -> str:
    """Returns where the user names the format or the column of a part."""
    if key == OPTIONS:
        return f"--{name}"
    return f"{key}.{name}.{part}" if part else f"{key}.{name}"


def _columns(key: str, columns: Mapping[str, str]) -> str:
    """Returns how columns are named: as arguments that a shell takes, or as an entry of dataset.json."""
    if key == INDEX:
        return f'"columns": {json.dumps(columns, ensure_ascii=False)}'
    if key == OPTIONS:
        return f"--columns {shlex.quote(','.join(f'{part}={column}' for part, column in columns.items()))}"
    return " ".join(shlex.quote(f"{key}.columns.{part}={column}") for part, column in columns.items())


def _near(column: str, keys: Iterable[str]) -> str:
    folded = {key.strip().lower(): key for key in keys}
    near = get_close_matches(column.strip().lower(), folded, n=1)
    return f"Did you mean `{folded[near[0]]}`?" if near else ""


def _place(row: Row) -> str:
    return f"{row.file}:{row.line}"


def _listed(keys: Any) -> str:
    return ", ".join(f"`{key}`" for key in keys) or "none"
