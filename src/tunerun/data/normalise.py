"""Brings a row of any known format to a conversation or a text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from tunerun.data.messages import conversation, list_of, object_of, parse_json, text_of, tool_call
from tunerun.data.rows import Conversation, RowFault, Text

Columns = Mapping[str, str]

_PLACEHOLDER = re.compile(r"\{\{([A-Za-z_][A-Za-z0-9_]*)\}\}")

# ShareGPT's names and those that its relatives use.
_SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "call",
    "tool_call": "call",
    "observation": "tool",
    "tool": "tool",
    "function_response": "tool",
}


def normalise(value: Any, form: str, columns: Columns, system: str | None = None) -> Conversation | Text:
    """Brings a row to a conversation or a text.

    Args:
        value: The row.
        form: Name of its format.
        columns: For `columns`: the column of each part (`system`, `user`, `assistant`, `text`).
        system: System prompt for conversations that have none.

    Raises:
        RowFault: The row does not have the format, or breaks its rules.
    """
    made = PARSERS[form](value, columns)
    if system is not None and isinstance(made, Conversation) and made.messages[0]["role"] != "system":
        messages = ({"role": "system", "content": system}, *made.messages)
        return Conversation(messages, made.tools, frozenset(index + 1 for index in made.untrained))
    return made


def fill(value: Any, variables: Mapping[str, str], *, strict: bool) -> Any:
    """Fills `{{name}}` placeholders in every text of a row.

    Args:
        value: A JSON value.
        variables: Text by name.
        strict: Whether a placeholder without a value is a fault.

    Raises:
        RowFault: A placeholder has no value.
    """
    if isinstance(value, str):
        if "{{" not in value:
            return value
        names = [name for name in _PLACEHOLDER.findall(value) if name not in variables]
        if names and strict:
            raise RowFault("unfilled-placeholder", f"{{{{{names[0]}}}}} has no value.")
        return _PLACEHOLDER.sub(lambda match: variables.get(match[1], match[0]), value)
    if isinstance(value, dict):
        return {key: fill(item, variables, strict=strict) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, variables, strict=strict) for item in value]
    return value


def _alpaca(value: Any, _: Columns) -> Conversation:
    row = object_of(value, "the row")
    instruction = text_of(_field(row, "instruction"), "`instruction`")
    extra = text_of(_optional(row, "input", ""), "`input`")
    messages = _system(row)
    for turn in list_of(_optional(row, "history", []), "`history`"):
        if len(list_of(turn, "a turn of `history`")) != 2:
            raise RowFault("wrong-type", "a turn of `history` is not a pair of prompt and answer.")
        messages += _turns(*turn)
    prompt = "\n".join(part for part in (instruction, extra) if part.strip())
    return conversation(messages + _turns(prompt, text_of(_field(row, "output"), "`output`")))


def _sharegpt(value: Any, _: Columns) -> Conversation:
    row = object_of(value, "the row")
    turns = list_of(_field(row, "conversations"), "`conversations`")
    messages = _system(row)
    for number, turn in enumerate(turns, start=1):
        speaker = _field(object_of(turn, f"turn {number}"), "from")
        if not isinstance(speaker, str) or speaker not in _SPEAKERS:
            detail = f"turn {number} is from {speaker!r}; known are {', '.join(_SPEAKERS)}."
            raise RowFault("unknown-role", detail)
        text = text_of(_field(turn, "value"), f"`value` of turn {number}")
        role = _SPEAKERS[speaker]
        if role == "call":
            messages.append({"role": "assistant", "content": "", "tool_calls": _shared_calls(text, number)})
        else:
            messages.append({"role": role, "content": text})
    return conversation(messages, _optional(row, "tools", None))


def _shared_calls(text: str, number: int) -> list[dict[str, Any]]:
    calls = parse_json(text, f"the function call in turn {number}")
    calls = calls if isinstance(calls, list) else [calls]
    return [tool_call(call, f"the function call in turn {number}") for call in calls]


def _messages(value: Any, _: Columns) -> Conversation:
    row = object_of(value, "the row")
    return conversation(list_of(_field(row, "messages"), "`messages`"), _optional(row, "tools", None))


def _xtuner(value: Any, _: Columns) -> Conversation:
    row = object_of(value, "the row")
    messages: list[dict[str, Any]] = []
    for turn in list_of(_field(row, "conversation"), "`conversation`"):
        if not messages:
            messages += _system(object_of(turn, "a turn"))
        messages += _turns(_field(object_of(turn, "a turn"), "input"), _field(turn, "output"))
    return conversation(messages)


def _columns(value: Any, columns: Columns) -> Conversation | Text:
    row = object_of(value, "the row")
    parts = {part: text_of(_field(row, column), f"`{column}`") for part, column in columns.items()}
    if "text" in parts:
        return _as_text(parts["text"], f"`{columns['text']}`")
    system = [{"role": "system", "content": parts["system"]}] if "system" in parts and parts["system"].strip() else []
    return conversation(system + _turns(parts["user"], parts["assistant"]))


def _text(value: Any, _: Columns) -> Text:
    if isinstance(value, str):
        return _as_text(value, "the line")
    return _as_text(_field(object_of(value, "the row"), "text"), "`text`")


def _as_text(value: Any, what: str) -> Text:
    text = text_of(value, what)
    if not text.strip():
        raise RowFault("empty-text", f"{what} is empty.")
    return Text(text)


# Of each format; the names are those of `data.format`, and `xtuner`, which is only ever found.
PARSERS: dict[str, Callable[[Any, Columns], Conversation | Text]] = {
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "messages": _messages,
    "xtuner": _xtuner,
    "columns": _columns,
    "text": _text,
}


def _turns(prompt: Any, answer: Any) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": text_of(prompt, "the prompt")},
        {"role": "assistant", "content": text_of(answer, "the answer")},
    ]


def _system(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    text = text_of(_optional(row, "system", ""), "`system`")
    return [{"role": "system", "content": text}] if text.strip() else []


def _field(row: Mapping[str, Any], key: str) -> Any:
    if key not in row:
        raise RowFault("missing-field", f"`{key}` is missing.")
    return row[key]


def _optional(row: Mapping[str, Any], key: str, default: Any) -> Any:
    value = row.get(key)
    return default if value is None else value
