"""OpenAI chat messages: the one form that all chat rows are brought to, and its rules."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tunerun.data.rows import Conversation, RowFault

ROLES = ("system", "user", "assistant", "tool")
_ROLE_NAMES = {"developer": "system", "function": "tool", **{role: role for role in ROLES}}

# Seen by templates beside role and content.
_KEPT = ("name", "tool_call_id", "reasoning_content")


def conversation(messages: Sequence[Mapping[str, Any]], tools: Any = None, *, answered: bool = True) -> Conversation:
    """Checks messages and brings them to the one form.

    Args:
        messages: With `role` and `content`, and possibly `tool_calls`, `function_call`, `weight`.
        tools: A list of function definitions, its JSON text, or None.
        answered: Whether every answer has to be there; else one may be empty, and the last one missing.

    Raises:
        RowFault: A message is malformed, the roles are out of order, or an answer is empty.
    """
    made: list[dict[str, Any]] = []
    untrained: set[int] = set()
    for index, message in enumerate(messages):
        made.append(_message(message, index + 1, answered))
        if "weight" in message and message["weight"] is not None:
            if message["weight"] not in (0, 1):
                raise RowFault("wrong-type", f"message {index + 1}: `weight` is neither 0 nor 1.")
            if message["weight"] == 0:
                untrained.add(index)
    _check_order(made, answered)
    _number_calls(made)
    return Conversation(tuple(made), _tools(tools), frozenset(untrained))


def text_of(value: Any, what: str) -> str:
    """Returns a value that has to be a text.

    Raises:
        RowFault: It is not, or it holds half a surrogate pair.
    """
    if not isinstance(value, str):
        raise RowFault("wrong-type", f"{what} is {_kind(value)}, not a text.")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            detail = f"{what} holds half a surrogate pair at position {error.start + 1}."
            raise RowFault("bad-encoding", detail) from error
    return value


def list_of(value: Any, what: str) -> list[Any]:
    """Returns a value that has to be a list.

    Raises:
        RowFault: It is not.
    """
    if not isinstance(value, list):
        raise RowFault("wrong-type", f"{what} is {_kind(value)}, not a list.")
    return value


def object_of(value: Any, what: str) -> dict[str, Any]:
    """Returns a value that has to be an object.

    Raises:
        RowFault: It is not.
    """
    if not isinstance(value, dict):
        raise RowFault("wrong-type", f"{what} is {_kind(value)}, not an object.")
    return value


def tool_call(value: Any, what: str) -> dict[str, Any]:
    """Brings a tool call, wrapped or not, to `{"type": "function", "function": {"name", "arguments": {...}}}`.

    Raises:
        RowFault: The name is missing, or the arguments are not a JSON object.
    """
    outer = object_of(value, what)
    inner = object_of(outer["function"], what) if "function" in outer else outer
    if "name" not in inner or "arguments" not in inner:
        raise RowFault("bad-tool-call", f"{what} needs `name` and `arguments`.")
    arguments = inner["arguments"]
    if isinstance(arguments, str):
        arguments = parse_json(arguments, f"the arguments of {what}") if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise RowFault("bad-tool-call", f"the arguments of {what} are {_kind(arguments)}, not an object.")
    name = text_of(inner["name"], f"the name of {what}")
    if not name.strip():
        raise RowFault("bad-tool-call", f"{what} has an empty name.")
    identity = {"id": text_of(outer["id"], f"the id of {what}")} if "id" in outer else {}
    return {"type": "function", **identity, "function": {"name": name, "arguments": arguments}}


def parse_json(text: str, what: str) -> Any:
    """Parses JSON that a row carries as a text.

    Raises:
        RowFault: It is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowFault("bad-tool-call", f"{what} is not JSON: {error}.") from error


def _message(message: Any, number: int, answered: bool) -> dict[str, Any]:
    what = f"message {number}"
    object_of(message, what)
    if "role" not in message or not isinstance(message["role"], str) or message["role"] not in _ROLE_NAMES:
        role = repr(message["role"]) if "role" in message else "missing"
        raise RowFault("unknown-role", f"the role of {what} is {role}; known are {', '.join(ROLES)}.")
    role = _ROLE_NAMES[message["role"]]
    made: dict[str, Any] = {"role": role, "content": _content(message.get("content"), what)}
    for key in _KEPT:
        if key in message and message[key] is not None:
            made[key] = text_of(message[key], f"`{key}` of {what}")
    calls = _calls(message, what)
    if calls:
        made["tool_calls"] = calls
    if role == "assistant" and answered and not calls and not made["content"].strip():
        raise RowFault("empty-answer", f"{what}, the assistant's, is empty.")
    if role == "user" and not made["content"].strip():
        raise RowFault("empty-prompt", f"{what}, the user's, is empty.")
    if calls and role != "assistant":
        raise RowFault("bad-tool-call", f"{what} calls a tool but is not the assistant's.")
    return made


def _content(value: Any, what: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, list):
        return text_of(value, f"the content of {what}")
    parts = [object_of(part, f"a part of {what}") for part in value]
    for part in parts:
        if "type" not in part or part["type"] != "text" or "text" not in part:
            raise RowFault("not-text", f"{what} has a part that is not text; only text is trained.")
    return "".join(text_of(part["text"], f"a part of {what}") for part in parts)


def _calls(message: Mapping[str, Any], what: str) -> list[dict[str, Any]]:
    if "tool_calls" in message and message["tool_calls"] is not None:
        calls = list_of(message["tool_calls"], f"`tool_calls` of {what}")
        return [tool_call(call, f"the tool call in {what}") for call in calls]
    if "function_call" in message and message["function_call"] is not None:
        return [tool_call(message["function_call"], f"the function call in {what}")]
    return []


# Which roles may follow which; a system message only starts a conversation.
_FOLLOWERS = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("user", "assistant"),
    "assistant": ("user",),
    "call": ("tool",),
    "tool": ("tool", "assistant"),
}


def _check_order(messages: Sequence[Mapping[str, Any]], answered: bool) -> None:
    before: str | None = None
    for number, message in enumerate(messages, start=1):
        role = message["role"]
        if role not in _FOLLOWERS[before]:
            place = "starts the conversation" if before is None else f"follows {_TITLES[before]}"
            detail = f"message {number} ({role}) {place}; {' or '.join(_FOLLOWERS[before])} was expected."
            raise RowFault("role-order", detail)
        before = "call" if "tool_calls" in message else role
    if before not in (("assistant", "call") if answered else ("assistant", "call", "user")):
        last = "there is no message" if before is None else f"the last message is {_TITLES[before]}"
        raise RowFault("role-order", f"{last}; a conversation ends with the assistant's answer.")


_TITLES = {
    "system": "a system message",
    "user": "a user message",
    "assistant": "an assistant message",
    "call": "a tool call",
    "tool": "a tool result",
}


def _number_calls(messages: Sequence[dict[str, Any]]) -> None:
    """Gives tool calls without an id one of nine characters, as some templates demand, and their results the same."""
    waiting: list[str] = []
    count = 0
    for message in messages:
        if "tool_calls" in message:
            for call in message["tool_calls"]:
                if "id" not in call:
                    call["id"] = f"call{count:05d}"
                count += 1
            waiting = [call["id"] for call in message["tool_calls"]]
        elif message["role"] == "tool" and waiting:
            identity = waiting.pop(0)
            if "tool_call_id" not in message:
                message["tool_call_id"] = identity


def _tools(value: Any) -> tuple[Mapping[str, Any], ...] | None:
    if isinstance(value, str):
        value = parse_json(value, "`tools`") if value.strip() else None
    if value is None:
        return None
    tools = [object_of(tool, "a tool") for tool in list_of(value, "`tools`")]
    made = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    for tool in made:
        function = object_of(tool["function"], "a tool")
        if "name" not in function or not isinstance(function["name"], str):
            raise RowFault("bad-tool", "a tool has no name.")
    return tuple(made) or None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
