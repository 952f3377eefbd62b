"""Reads OpenAI request bodies: every field is checked, and what cannot be done is refused rather than ignored."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunerun.serve.protocol import Generate

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
_DEFAULT_COMPLETION_TOKENS = 16
# Below these, probabilities leave the range of float32; the choice is the same.
_COLDEST = 1e-3
_NARROWEST = 1e-6

# Fields that say something about the caller and nothing about the answer.
_IGNORED = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
)
_SAMPLING = frozenset(
    ("model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop")
)
# Fields that are accepted only with values that ask for nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "logit_bias": ({},),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "echo": (False,),
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "tool_choice": ("auto", "none"),
    "modalities": (["text"],),
}
_CHAT = frozenset(("messages", "tools", "max_completion_tokens"))
_COMPLETION = frozenset(("prompt",))

_ROLES = ("system", "developer", "user", "assistant", "tool")
_MESSAGE_FIELDS = frozenset(("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content"))


class InvalidRequest(Exception):  # noqa: N818 (the client's mistake)
    """A request body that is not as it should be."""

    def __init__(self, field: str | None, message: str) -> None:
        """Takes the field at fault, as a dotted path, and one sentence."""
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What chat and plain completions have in common."""

    model: str | None
    stream: bool
    include_usage: bool
    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: tuple[str, ...]

    def generate(self, prompt: str | tuple[int, ...], adapter: str | None, *, plain: bool) -> Generate:
        """Returns the request to the engine; its number is given when it is sent."""
        return Generate(
            id=-1,
            adapter=adapter,
            prompt=prompt,
            plain=plain,
            max_new_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            stop=self.stop,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    """Body of /v1/chat/completions."""

    asked: Asked
    messages: tuple[Mapping[str, Any], ...]
    """With tool-call arguments as objects, as chat templates want them."""
    tools: tuple[Mapping[str, Any], ...] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionRequest:
    """Body of /v1/completions."""

    asked: Asked
    prompt: str | tuple[int, ...]


def parse_body(body: bytes) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        InvalidRequest: It is not one, or holds a number that JSON does not have.
    """
    try:
        data = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise InvalidRequest(None, "The body is not UTF-8.") from error
    except RecursionError as error:
        raise InvalidRequest(None, "The body is nested too deeply.") from error
    except ValueError as error:
        raise InvalidRequest(None, f"The body is not valid JSON: {error}.") from error
    if not isinstance(data, dict):
        raise InvalidRequest(None, "The body is not a JSON object.")
    # OpenAI clients send null for what is not set.
    return {key: value for key, value in data.items() if value is not None}


def parse_chat(data: Mapping[str, Any]) -> ChatRequest:
    """Reads the body of /v1/chat/completions.

    Raises:
        InvalidRequest: A field is missing, wrong or not supported.
    """
    _check_fields(data, _CHAT)
    if "messages" not in data:
        raise InvalidRequest("messages", "`messages` is missing.")
    found = data["messages"]
    if not isinstance(found, list) or not found:
        raise InvalidRequest("messages", "`messages` must be a list of at least one message.")
    messages = tuple(_message(item, f"messages[{index}]") for index, item in enumerate(found))
    tools = _tools(data["tools"]) if "tools" in data else ()
    choice = data.get("tool_choice", "auto")
    limit = _max_tokens(data, "max_completion_tokens") or _max_tokens(data, "max_tokens")
    return ChatRequest(
        asked=_asked(data, limit), messages=messages, tools=tools if tools and choice == "auto" else None
    )


def parse_completion(data: Mapping[str, Any]) -> CompletionRequest:
    """Reads the body of /v1/completions.

    Raises:
        InvalidRequest: A field is missing, wrong or not supported.
    """
    _check_fields(data, _COMPLETION)
    if "prompt" not in data:
        raise InvalidRequest("prompt", "`prompt` is missing.")
    limit = _max_tokens(data, "max_tokens") or _DEFAULT_COMPLETION_TOKENS
    return CompletionRequest(asked=_asked(data, limit), prompt=_prompt(data["prompt"]))


def _check_fields(data: Mapping[str, Any], own: frozenset[str]) -> None:
    for key, value in data.items():
        if key in _NEUTRAL:
            # True == 1 in Python, and `n=true` is no number.
            if not any(value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
                       for neutral in _NEUTRAL[key]):  # fmt: skip
                raise InvalidRequest(key, f"`{key}` is supported only as {_choices(_NEUTRAL[key])}.")
        elif key not in own and key not in _SAMPLING and key not in _IGNORED:
            raise InvalidRequest(_printable(key), f"`{_printable(key)}` is not a field of this request.")


def _choices(values: tuple[Any, ...]) -> str:
    return " or ".join(json.dumps(value) for value in values)


def _asked(data: Mapping[str, Any], limit: int | None) -> Asked:
    stream = _boolean(data, "stream")
    options = data.get("stream_options", {})
    if not isinstance(options, dict) or not set(options) <= {"include_usage", "include_obfuscation"}:
        raise InvalidRequest("stream_options", "`stream_options` must be an object with `include_usage`.")
    if options and not stream:
        raise InvalidRequest("stream_options", "`stream_options` needs `stream`.")
    temperature = _number(data, "temperature", default=1.0, low=0.0, high=2.0)
    return Asked(
        model=_text(data["model"], "model") if "model" in data else None,
        stream=stream,
        include_usage=_boolean(options, "include_usage"),
        max_tokens=limit,
        temperature=0.0 if temperature < _COLDEST else temperature,
        top_p=max(_NARROWEST, _number(data, "top_p", default=1.0, low=0.0, high=1.0)),
        top_k=_integer(data["top_k"], "top_k", low=0, high=1 << 30) if "top_k" in data else 0,
        seed=_seed(data),
        stop=_stops(data["stop"]) if "stop" in data else (),
    )


def _seed(data: Mapping[str, Any]) -> int:
    if "seed" not in data:
        return secrets.randbits(32)
    return _integer(data["seed"], "seed", low=-(1 << 63), high=(1 << 63) - 1) % (1 << 32)


def _max_tokens(data: Mapping[str, Any], key: str) -> int | None:
    return _integer(data[key], key, low=1, high=1 << 31) if key in data else None


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise InvalidRequest("stop", f"`stop` must be a text or a list of at most {MAX_STOPS} texts.")
    texts = tuple(_text(stop, "stop") for stop in stops)
    if not all(0 < len(text) <= MAX_STOP_CHARACTERS for text in texts):
        raise InvalidRequest("stop", f"A `stop` text must have 1 to {MAX_STOP_CHARACTERS} characters.")
    return texts


def _prompt(value: Any) -> str | tuple[int, ...]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return _text(value, "prompt")
    if isinstance(value, list) and value and not isinstance(value[0], str | list):
        return tuple(_integer(token, "prompt", low=0, high=1 << 31) for token in value)
    raise InvalidRequest("prompt", "`prompt` must be one text or one list of token ids.")


def _message(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(where, f"`{where}` must be an object.")
    # Clients send an answer back with every field it came with, most of them empty.
    given = {key: item for key, item in value.items() if item is not None and item != []}
    unknown = sorted(set(given) - _MESSAGE_FIELDS)
    if unknown:
        name = _printable(unknown[0])
        raise InvalidRequest(f"{where}.{name}", f"`{where}.{name}` is not supported.")
    if "role" not in given or given["role"] not in _ROLES:
        raise InvalidRequest(f"{where}.role", f"`{where}.role` must be one of: {', '.join(_ROLES)}.")
    role = "system" if given["role"] == "developer" else given["role"]
    if "content" not in given and (role != "assistant" or "tool_calls" not in given) and value.get("content") != []:
        raise InvalidRequest(f"{where}.content", f"`{where}.content` is missing.")
    message = {"role": role, "content": _content(given.get("content", ""), f"{where}.content")}
    for key in ("name", "tool_call_id", "reasoning_content"):
        if key in given:
            message[key] = _text(given[key], f"{where}.{key}")
    if "tool_calls" in given:
        message["tool_calls"] = _tool_calls(given["tool_calls"], f"{where}.tool_calls")
    return message


def _content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return _text(value, where)
    if not isinstance(value, list):
        raise InvalidRequest(where, f"`{where}` must be a text or a list of text parts.")
    parts = []
    for part in value:
        if not isinstance(part, dict) or set(part) != {"type", "text"} or part["type"] != "text":
            raise InvalidRequest(where, f"`{where}` may hold parts of the type `text` only.")
        parts.append(_text(part["text"], where))
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
            arguments = json.loads(arguments, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(where, f"`{where}.function.arguments` is not valid JSON.") from error
    if not isinstance(arguments, dict):
        raise InvalidRequest(where, f"`{where}.function.arguments` must be a JSON object.")
    _check_texts(arguments, where)
    call = {"type": "function", "function": {"name": _text(function["name"], where), "arguments": arguments}}
    return {"id": _text(value["id"], where), **call} if "id" in value else call


def _tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list):
        raise InvalidRequest("tools", "`tools` must be a list.")
    for index, tool in enumerate(value):
        function = tool["function"] if isinstance(tool, dict) and "function" in tool else None
        if not isinstance(function, dict) or "name" not in function or "type" not in tool or tool["type"] != "function":
            raise InvalidRequest(
                "tools", f"`tools[{index}]` must have the type `function` and a `function` with a name."
            )
        _text(function["name"], f"tools[{index}].function.name")
        _check_texts(tool, f"tools[{index}]")
    return tuple(value)


def _boolean(data: Mapping[str, Any], key: str) -> bool:
    value = data.get(key, False)
    if not isinstance(value, bool):
        raise InvalidRequest(key, f"`{key}` must be true or false.")
    return value


def _number(data: Mapping[str, Any], key: str, *, default: float, low: float, high: float) -> float:
    value = data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high or math.isnan(value):
        raise InvalidRequest(key, f"`{key}` must be a number from {low:g} to {high:g}.")
    return float(value)


def _integer(value: Any, key: str, *, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(key, f"`{key}` must be a whole number from {low} to {high}.")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(where, f"`{where}` must be a text.")
    if _printable(value) != value:
        raise InvalidRequest(where, f"`{where}` holds half of a surrogate pair, which is no character.")
    return value


def _check_texts(value: Any, where: str) -> None:
    """Refuses texts without a UTF-8 form anywhere in a JSON value."""
    if isinstance(value, str):
        _text(value, where)
    elif isinstance(value, dict):
        for key, item in value.items():
            _text(key, where)
            _check_texts(item, where)
    elif isinstance(value, list):
        for item in value:
            _check_texts(item, where)


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
