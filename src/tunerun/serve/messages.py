"""Reads the messages and the tools of chat requests, into what chat templates take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunerun.serve.fields import Field, InvalidRequest, check_texts, parse_json, printable, read_text

Message = Mapping[str, Any]
Tool = Mapping[str, Any]

_ROLES = ("system", "developer", "user", "assistant", "tool")
_TEXTS = ("name", "tool_call_id", "reasoning_content")
_MESSAGE_FIELDS = frozenset(("role", "content", "tool_calls", *_TEXTS))
_CHOICES = ("none", "auto", "required")

_TEXT = {"type": "string"}
_NULL = {"type": "null"}
_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": _TEXT},
    "required": ["type", "text"],
    "additionalProperties": False,
}
_CALLED = {
    "type": "object",
    "properties": {"name": _TEXT, "arguments": {"type": ["string", "object"], "description": "A JSON object."}},
    "required": ["name", "arguments"],
}
_CALL = {"type": "object", "properties": {"id": _TEXT, "function": _CALLED}, "required": ["function"]}
_MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"enum": list(_ROLES)},
        "content": {"anyOf": [_TEXT, {"type": "array", "items": _PART}, _NULL]},
        "tool_calls": {"anyOf": [{"type": "array", "items": _CALL}, _NULL]},
        **{key: {"type": ["string", "null"]} for key in _TEXTS},
    },
    "required": ["role"],
    # Clients send an answer back with every field it came with, most of them empty.
    "additionalProperties": {"enum": [None, []]},
}
_FUNCTION = {"type": "object", "properties": {"name": {"type": "string", "minLength": 1}}, "required": ["name"]}
_TOOL = {
    "type": "object",
    "properties": {"type": {"const": "function"}, "function": _FUNCTION},
    "required": ["type", "function"],
}
_NAMED = {
    "type": "object",
    "properties": {"type": {"const": "function"}, "function": _FUNCTION},
    "required": ["type", "function"],
    "additionalProperties": False,
}


def messages() -> Field:
    """The conversation: tuples of messages with the arguments of tool calls as objects."""
    return Field(_messages, {"type": "array", "items": _MESSAGE, "minItems": 1}, required=True)


def tools() -> Field:
    """Functions that the model may call."""
    return Field(_tools, {"type": "array", "items": _TOOL})


def tool_choice() -> Field:
    """Whether a tool must be called: one of three words, or a mapping with the function's `name`."""
    return Field(_tool_choice, {"anyOf": [{"enum": list(_CHOICES)}, _NAMED]})


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise InvalidRequest(where, f"`{where}` must be a list of at least one message.")
    return tuple(_message(item, f"{where}[{index}]") for index, item in enumerate(value))


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise InvalidRequest(where, f"`{where}` must be an object.")
    given = {key: item for key, item in value.items() if item is not None and item != []}
    unknown = sorted(set(given) - _MESSAGE_FIELDS)
    if unknown:
        name = printable(unknown[0])
        raise InvalidRequest(f"{where}.{name}", f"`{where}.{name}` is not supported.")
    if "role" not in given or given["role"] not in _ROLES:
        raise InvalidRequest(f"{where}.role", f"`{where}.role` must be one of: {', '.join(_ROLES)}.")
    role = "system" if given["role"] == "developer" else given["role"]
    if "content" not in given and (role != "assistant" or "tool_calls" not in given) and value.get("content") != []:
        raise InvalidRequest(f"{where}.content", f"`{where}.content` is missing.")
    message = {"role": role, "content": _content(given.get("content", ""), f"{where}.content")}
    for key in _TEXTS:
        if key in given:
            message[key] = read_text(given[key], f"{where}.{key}")
    if "tool_calls" in given:
        message["tool_calls"] = _tool_calls(given["tool_calls"], f"{where}.tool_calls")
    return message


def _content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return read_text(value, where)
    if not isinstance(value, list):
        raise InvalidRequest(where, f"`{where}` must be a text or a list of text parts.")
    parts = []
    for part in value:
        if not isinstance(part, dict) or set(part) != {"type", "text"} or part["type"] != "text":
            raise InvalidRequest(where, f"`{where}` may hold parts of the type `text` only.")
        parts.append(read_text(part["text"], where))
    return "".join(parts)


def _tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise InvalidRequest(where, f"`{where}` must be a list.")
    return [_tool_call(item, f"{where}[{index}]") for index, item in enumerate(value)]


def _tool_call(value: Any, where: str) -> dict[str, Any]:
    function = value["function"] if isinstance(value, dict) and "function" in value else None
    if not isinstance(function, dict) or not {"name", "arguments"} <= set(function):
        raise InvalidRequest(where, f"`{where}.function` must have `name` and `arguments`.")
    arguments = function["arguments"]
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(where, f"`{where}.function.arguments` is not valid JSON.") from error
    if not isinstance(arguments, dict):
        raise InvalidRequest(where, f"`{where}.function.arguments` must be a JSON object.")
    check_texts(arguments, where)
    call = {"type": "function", "function": {"name": read_text(function["name"], where), "arguments": arguments}}
    return {"id": read_text(value["id"], where), **call} if "id" in value else call


def _tools(value: Any, where: str) -> tuple[Tool, ...]:
    if not isinstance(value, list):
        raise InvalidRequest(where, f"`{where}` must be a list.")
    for index, tool in enumerate(value):
        name = _function_name(tool)
        if not name:
            what = f"`{where}[{index}]` must have the type `function` and a `function` with a name."
            raise InvalidRequest(where, what)
        check_texts(tool, f"{where}[{index}]")
    return tuple(value)


def _tool_choice(value: Any, where: str) -> str | Mapping[str, str]:
    if isinstance(value, str) and value in _CHOICES:
        return value
    name = _function_name(value)
    if not name or set(value) != {"type", "function"}:
        what = f"`{where}` must be none, auto, required, or an object with the type `function` and a name."
        raise InvalidRequest(where, what)
    return {"name": read_text(name, where)}


def _function_name(value: Any) -> str:
    """Returns the name in an object of OpenAI's form; empty when it has another form."""
    if not isinstance(value, dict) or "type" not in value or value["type"] != "function":
        return ""
    function = value.get("function")
    name = function["name"] if isinstance(function, dict) and "name" in function else None
    return name if isinstance(name, str) else ""
