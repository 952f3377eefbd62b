"""Brings a row of any known format to what objectives learn from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tunerun.data.detect import LISTS, Format, unwrapped
from tunerun.data.messages import conversation, list_of, object_of, parse_json, text_of
from tunerun.data.rows import Content, Conversation, Labelled, Preference, Prompt, RowFault, Text

Turns = list[Mapping[str, Any]]
"""Messages in OpenAI's form, not checked yet."""

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
    "tool_response": "tool",
    "function_response": "tool",
}

# How Anthropic's hh-rlhf writes a conversation into one text.
_DIALOGUE = re.compile(r"\n\n(Human|Assistant):")


def normalise(value: Any, form: Format, system: str | None = None, *, override: bool = False) -> Content:
    """Brings a row to what objectives learn from.

    Args:
        value: The row.
        form: How it is read.
        system: System prompt for conversations that have none.
        override: Whether it replaces the rows' own; an empty one removes them.

    Raises:
        RowFault: The row does not have the format, or breaks its rules.
    """
    made = _parse(value, form)
    if system is None or isinstance(made, Text):
        return made
    if isinstance(made, Preference):
        return Preference(_with_system(made.chosen, system, override), _with_system(made.rejected, system, override))
    if isinstance(made, Labelled):
        return replace(made, conversation=_with_system(made.conversation, system, override))
    return _with_system(made, system, override)


def prompt_of(value: Any, form: Format, system: str | None = None) -> Prompt:
    """Brings a row to a conversation that a teacher is to answer: its own answers are taken out.

    Args:
        value: The row.
        form: How it is read; documents are asked as they are.
        system: System prompt for rows that have none.

    Raises:
        RowFault: The row does not have the format, breaks its rules, has tools, or leaves nothing to answer.
    """
    made = unanswered(value, form)
    if system is not None:
        made = _with_system(made, system, override=False)
    answers = {index for index, message in enumerate(made.messages) if message["role"] == "assistant"}
    blank = {"role": "assistant", "content": ""}
    open_end = (blank,) if made.messages[-1]["role"] == "user" else ()
    asked = (answers - made.untrained) | ({len(made.messages)} if open_end else set())
    if not asked:
        raise RowFault("nothing-asked", "every answer has the weight 0, which keeps it.")
    filled = (blank if index in asked else message for index, message in enumerate(made.messages))
    return Prompt((*filled, *open_end), frozenset(asked))


def unanswered(value: Any, form: Format) -> Conversation:
    """Brings a row to a conversation as it stands, whose answers may be empty and the last one missing.

    Args:
        value: The row.
        form: How it is read; documents are what the user says.

    Raises:
        RowFault: The row does not have the format, breaks its rules, or has tools.
    """
    if form.kind == "text":
        messages, tools = [{"role": "user", "content": _document(value, form).text}], None
    else:
        row = unwrapped(object_of(value, "the row"))
        messages, tools = [dict(turn) for turn in _PROMPTS[form.name](row, form.columns)], _tools(row)
    made = conversation(messages, tools, answered=False)
    if made.tools or any(message["role"] == "tool" or "tool_calls" in message for message in made.messages):
        raise RowFault("has-tools", "the row has tools, and models are asked for text only.")
    return made


def _parse(value: Any, form: Format) -> Content:
    if form.kind == "text":
        return _document(value, form)
    row = unwrapped(object_of(value, "the row"))
    prompt, tools = _PROMPTS[form.name](row, form.columns), _tools(row)
    if form.kind == "pairs":
        chosen, rejected = (_answer(row, form.columns[part]) for part in ("chosen", "rejected"))
        return _preference(prompt, chosen, rejected, tools)
    answer = _answer(row, form.columns["assistant"]) if "assistant" in form.columns else []
    messages = _joined(prompt, answer)
    made = conversation(messages, tools)
    if form.kind == "conversations":
        return made
    start = len(messages) - 1 if not answer or _brings_prompt(answer) else len(prompt)
    return Labelled(_trained_from(made, start), _label(row, form.columns["label"]))


def _with_system(made: Conversation, system: str, override: bool) -> Conversation:
    has_one = made.messages[0]["role"] == "system"
    if has_one and not override:
        return made
    head = ({"role": "system", "content": system},) if system.strip() else ()
    rest = made.messages[1:] if has_one else made.messages
    shift = len(head) - has_one
    return Conversation((*head, *rest), made.tools, frozenset(index + shift for index in made.untrained))


def _trained_from(made: Conversation, start: int) -> Conversation:
    """Leaves the answers before a message untrained."""
    before = {index for index, message in enumerate(made.messages[:start]) if message["role"] == "assistant"}
    return replace(made, untrained=made.untrained | before)


def _preference(prompt: Turns, chosen: Turns, rejected: Turns, tools: Any) -> Preference:
    if chosen == rejected:
        raise RowFault("same-answers", "the chosen and the rejected answer are the same.")
    better, worse = _joined(prompt, chosen), _joined(prompt, rejected)
    start = len(prompt)
    if _brings_prompt(chosen) or _brings_prompt(rejected):
        pairs = enumerate(zip(better, worse, strict=False))
        start = next((index for index, (one, other) in pairs if one != other), min(len(better), len(worse)))
    sides = [_trained_from(conversation(messages, tools), start) for messages in (better, worse)]
    for side in sides:
        if start >= len(side.messages) or side.messages[start]["role"] != "assistant":
            detail = f"the chosen and the rejected side differ in message {start + 1}, which is no answer."
            raise RowFault("prompts-differ", detail)
    return Preference(*sides)


def _brings_prompt(answer: Turns) -> bool:
    """Whether an answer begins with its prompt, as lists of turns can."""
    return bool(answer) and "role" in answer[0] and answer[0]["role"] != "assistant"


def _joined(prompt: Turns, answer: Turns) -> Turns:
    """Puts an answer after its prompt, unless it brings the prompt along.

    Raises:
        RowFault: The answer brings another prompt along.
    """
    if not prompt or not _brings_prompt(answer):
        return prompt + answer
    # Beside a whole conversation many rows repeat its last question as the prompt.
    if answer[: len(prompt)] == prompt or (len(prompt) == 1 and prompt[0] in answer):
        return answer
    detail = f"the answer begins with a {answer[0]['role']} message, which the prompt does not have."
    raise RowFault("prompts-differ", detail)


def _answer(row: Mapping[str, Any], key: str) -> Turns:
    """Reads an answer: a text, one turn, or a list of turns."""
    return _turns(_field(row, key), f"`{key}`", "assistant")


def _turns(value: Any, what: str, role: str) -> Turns:
    """Reads a text of a role, one turn, or a list of turns."""
    if isinstance(value, list):
        return [_turn(turn, f"turn {number} of {what}") for number, turn in enumerate(value, start=1)]
    if isinstance(value, dict):
        return [_turn(value, what)]
    text = text_of(value, what)
    parts = _DIALOGUE.split(text)
    if len(parts) > 1 and not parts[0].strip():
        speakers = ("user" if name == "Human" else "assistant" for name in parts[1::2])
        return [
            {"role": speaker, "content": content.strip()}
            for speaker, content in zip(speakers, parts[2::2], strict=True)
        ]
    return [{"role": role, "content": text}]


def _turn(value: Any, what: str) -> Mapping[str, Any]:
    """Brings ShareGPT's `from` and `value` to OpenAI's `role` and `content`; other turns stay as they are."""
    turn = object_of(value, what)
    if "from" not in turn:
        return turn
    speaker, text = turn["from"], text_of(_field(turn, "value"), f"`value` of {what}")
    if not isinstance(speaker, str) or speaker not in _SPEAKERS:
        raise RowFault("unknown-role", f"{what} is from {speaker!r}; known are {', '.join(_SPEAKERS)}.")
    weight = {"weight": turn["weight"]} if "weight" in turn else {}
    if _SPEAKERS[speaker] == "call":
        calls = parse_json(text, f"the function call in {what}")
        return {"role": "assistant", "tool_calls": calls if isinstance(calls, list) else [calls], **weight}
    return {"role": _SPEAKERS[speaker], "content": text, **weight}


def _listed_prompt(key: str) -> Callable[[Mapping[str, Any], Mapping[str, str]], Turns]:
    def read(row: Mapping[str, Any], columns: Mapping[str, str]) -> Turns:
        turns = list_of(_field(row, key), f"`{key}`")
        return _system(row, columns) + [_turn(turn, f"turn {number}") for number, turn in enumerate(turns, start=1)]

    return read


def _xtuner(row: Mapping[str, Any], columns: Mapping[str, str]) -> Turns:
    messages: Turns = []
    shown: Turns = []
    for number, value in enumerate(list_of(_field(row, LISTS["xtuner"]), "`conversation`"), start=1):
        turn = object_of(value, f"turn {number}")
        system = _system(turn, columns)
        if system != shown:
            messages += system
            shown = system or shown
        messages += _pair(_field(turn, "input"), _field(turn, "output"), f"turn {number}")
    return messages


def _alpaca(row: Mapping[str, Any], columns: Mapping[str, str]) -> Turns:
    parts = [text_of(_field(row, columns["user"]), f"`{columns['user']}`")]
    extra = columns.get("input", "input")
    parts.append(text_of(_optional(row, extra, ""), f"`{extra}`"))
    messages = _system(row, columns)
    for turn in list_of(_optional(row, "history", []), "`history`"):
        if len(list_of(turn, "a turn of `history`")) != 2:
            raise RowFault("wrong-type", "a turn of `history` is not a pair of prompt and answer.")
        messages += _pair(turn[0], turn[1], "a turn of `history`")
    return [*messages, {"role": "user", "content": "\n".join(part for part in parts if part.strip())}]


def _columns(row: Mapping[str, Any], columns: Mapping[str, str]) -> Turns:
    prompt = _turns(_field(row, columns["user"]), f"`{columns['user']}`", "user") if "user" in columns else []
    return _system(row, columns) + prompt


# Of each format: everything before the answer's column, where there is one, else the whole conversation.
_PROMPTS: dict[str, Callable[[Mapping[str, Any], Mapping[str, str]], Turns]] = {
    "alpaca": _alpaca,
    "sharegpt": _listed_prompt(LISTS["sharegpt"]),
    "messages": _listed_prompt(LISTS["messages"]),
    "xtuner": _xtuner,
    "columns": _columns,
}


def _document(value: Any, form: Format) -> Text:
    if isinstance(value, str):
        text, what = value, "the line"
    elif form.name == "xtuner":
        listed = list_of(_field(object_of(value, "the row"), LISTS["xtuner"]), "`conversation`")
        turns = [object_of(turn, f"turn {number}") for number, turn in enumerate(listed, start=1)]
        if any(text_of(_optional(turn, "input", ""), "`input`").strip() for turn in turns):
            raise RowFault("not-text", "a turn has a prompt where the first row has none.")
        text, what = "\n".join(text_of(_field(turn, "output"), "`output`") for turn in turns), "`output`"
    else:
        key = form.columns["text"]
        text, what = text_of(_field(object_of(value, "the row"), key), f"`{key}`"), f"`{key}`"
    if not text.strip():
        raise RowFault("empty-text", f"{what} is empty.")
    return Text(text)


def _label(row: Mapping[str, Any], key: str) -> bool:
    value = _field(row, key)
    text = value.strip().lower() if isinstance(value, str) else value
    if text in (1, "true", "1"):
        return True
    if text in (0, "false", "0"):
        return False
    raise RowFault("wrong-type", f"`{key}` is {value!r}, neither true nor false.")


def _pair(prompt: Any, answer: Any, what: str) -> Turns:
    return [
        {"role": "user", "content": text_of(prompt, f"the prompt of {what}")},
        {"role": "assistant", "content": text_of(answer, f"the answer of {what}")},
    ]


def _system(row: Mapping[str, Any], columns: Mapping[str, str]) -> Turns:
    key = columns.get("system", "system")
    text = text_of(_optional(row, key, ""), f"`{key}`")
    return [{"role": "system", "content": text}] if text.strip() else []


def _tools(row: Mapping[str, Any]) -> Any:
    """Returns the function definitions of a row; `functions` is OpenAI's older name."""
    tools = _optional(row, "tools", None)
    return _optional(row, "functions", None) if tools is None else tools


def _field(row: Mapping[str, Any], key: str) -> Any:
    if key not in row:
        raise RowFault("missing-field", f"`{key}` is missing.")
    return row[key]


def _optional(row: Mapping[str, Any], key: str, default: Any) -> Any:
    value = row.get(key)
    return default if value is None else value
