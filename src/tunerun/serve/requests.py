"""Reads OpenAI request bodies: every field is checked, and what cannot be done is refused rather than ignored."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tunerun.serve import messages
from tunerun.serve.fields import (
    Field,
    Fields,
    InvalidRequest,
    check_texts,
    flag,
    ignored,
    number,
    only,
    parse_json,
    read_fields,
    read_text,
    record,
    text,
    texts,
    whole,
)
from tunerun.serve.messages import Message, Tool
from tunerun.serve.protocol import Generate

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_TOP_LOGPROBS = 20
_MAX_TOKENS = 1 << 31
_SEEDS = 1 << 32
_DEFAULT_COMPLETION_TOKENS = 16
COLDEST = 1e-3
"""Lowest temperature but 0: below it, probabilities leave the range of float32, and the choice is the same."""
# Of top_p, for the same reason.
_NARROWEST = 1e-6
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


def _response_format(value: Any, where: str) -> Mapping[str, Any] | None:
    """Returns the schema of the answer, or None for any text."""
    kind = value["type"] if isinstance(value, dict) and "type" in value else None
    if kind == "text":
        return None
    if kind == "json_object":
        return _ANY_OBJECT
    given = value["json_schema"] if kind == "json_schema" and "json_schema" in value else None
    if not isinstance(given, dict) or "schema" not in given or not isinstance(given["schema"], dict):
        what = f"`{where}` must have the type text, json_object, or json_schema with a `json_schema.schema`."
        raise InvalidRequest(where, what)
    schema: Mapping[str, Any] = given["schema"]
    check_texts(schema, where)
    return schema


def _prompt(value: Any, where: str) -> str | tuple[int, ...]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return read_text(value, where)
    if isinstance(value, list) and value and not isinstance(value[0], str | list):
        return tuple(_TOKEN.read(token, where) for token in value)
    raise InvalidRequest(where, f"`{where}` must be one text or one list of token ids.")


_TOKEN = whole(0, 1 << 31)
_TOKENS = {"type": "array", "items": _TOKEN.schema, "minItems": 1}
_PROMPT = Field(
    _prompt,
    {
        "anyOf": [
            {"type": "string"},
            _TOKENS,
            {"type": "array", "items": {"anyOf": [{"type": "string"}, _TOKENS]}, "minItems": 1, "maxItems": 1},
        ]
    },
    required=True,
)
_FORMAT = Field(
    _response_format,
    {
        "anyOf": [
            {"type": "object", "properties": {"type": {"enum": ["text", "json_object"]}}, "required": ["type"]},
            {
                "type": "object",
                "properties": {
                    "type": {"const": "json_schema"},
                    "json_schema": {
                        "type": "object",
                        "properties": {"schema": {"type": "object"}},
                        "required": ["schema"],
                    },
                },
                "required": ["type", "json_schema"],
            },
        ]
    },
)


def _shared(max_n: int) -> dict[str, Field]:
    """What chat and plain completions have in common."""
    return {
        "model": text(),
        "stream": flag(),
        "stream_options": record({"include_usage": flag(), "include_obfuscation": flag()}),
        "n": whole(1, max_n),
        "max_tokens": whole(1, _MAX_TOKENS),
        "temperature": number(0, 2),
        "top_p": number(0, 1),
        "top_k": whole(0, 1 << 30),
        "seed": whole(-(1 << 63), (1 << 63) - 1),
        "stop": texts(MAX_STOPS, MAX_STOP_CHARACTERS),
        "best_of": only(1),
        "presence_penalty": only(0),
        "frequency_penalty": only(0),
        "repetition_penalty": only(1),
        "min_p": only(0),
        "logit_bias": only({}),
        **{key: ignored() for key in ("user", "metadata", "store", "service_tier", "safety_identifier")},
        "prompt_cache_key": ignored(),
    }


def chat_fields(max_n: int) -> Fields:
    """Returns the fields of /v1/chat/completions."""
    return {
        "messages": messages.messages(),
        **_shared(max_n),
        "max_completion_tokens": whole(1, _MAX_TOKENS),
        "logprobs": flag(),
        "top_logprobs": whole(0, MAX_TOP_LOGPROBS),
        "response_format": _FORMAT,
        "tools": messages.tools(),
        "tool_choice": messages.tool_choice(),
        "parallel_tool_calls": flag(),
        "modalities": only(["text"]),
    }


def completion_fields(max_n: int) -> Fields:
    """Returns the fields of /v1/completions."""
    return {
        "prompt": _PROMPT,
        **_shared(max_n),
        "logprobs": whole(0, MAX_TOP_LOGPROBS),
        "echo": only(False),
        "suffix": only(""),
        "response_format": only({"type": "text"}),
    }


TOKENIZE_FIELDS: Fields = {
    "model": text(),
    "prompt": text(),
    "messages": Field(messages.messages().read, messages.messages().schema),
    "tools": messages.tools(),
    "add_generation_prompt": flag(),
    "add_special_tokens": flag(),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What chat and plain completions have in common."""

    model: str | None
    stream: bool
    include_usage: bool
    n: int
    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    seed: int
    seeded: bool
    """Whether the client chose the seed."""
    stop: tuple[str, ...]
    logprobs: int | None
    """How many of the likeliest tokens are told with each token; None tells no probabilities."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """One for each answer."""
        return tuple((self.seed + number) % _SEEDS for number in range(self.n))

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
            logprobs=self.logprobs,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    """Body of /v1/chat/completions."""

    asked: Asked
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    """None of them when the model is not to call any."""
    must_call: tuple[str, ...]
    """Functions one of which has to be called; none when the model is free."""
    parallel: bool
    """Whether an answer may hold several calls."""
    json_schema: Mapping[str, Any] | None
    """What the answer must follow; None for any text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionRequest:
    """Body of /v1/completions."""

    asked: Asked
    prompt: str | tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizeRequest:
    """Body of /tokenize: a text, or a conversation to render."""

    model: str | None
    prompt: str
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = field(default=())
    generation_prompt: bool
    """Whether the text that opens an assistant turn follows the last message."""
    special: bool
    """Whether the tokenizer adds the special tokens it puts around plain text."""


def parse_body(body: bytes) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        InvalidRequest: It is not one, or holds a number that JSON does not have.
    """
    try:
        data = parse_json(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidRequest(None, "The body is not UTF-8.") from error
    except RecursionError as error:
        raise InvalidRequest(None, "The body is nested too deeply.") from error
    except ValueError as error:
        raise InvalidRequest(None, f"The body is not valid JSON: {error}.") from error
    if not isinstance(data, dict):
        raise InvalidRequest(None, "The body is not a JSON object.")
    return data


def parse_chat(data: Mapping[str, Any], fields: Fields) -> ChatRequest:
    """Reads the body of /v1/chat/completions.

    Args:
        data: The body.
        fields: What `chat_fields` returns.

    Raises:
        InvalidRequest: A field is missing, wrong or not supported.
    """
    given = read_fields(data, fields)
    if "top_logprobs" in given and not given.get("logprobs", False) and given["top_logprobs"] > 0:
        raise InvalidRequest("top_logprobs", "`top_logprobs` needs `logprobs`.")
    limit = given.get("max_completion_tokens", given.get("max_tokens"))
    logprobs = given.get("top_logprobs", 0) if given.get("logprobs", False) else None
    choice = given.get("tool_choice", "auto")
    tools: tuple[Tool, ...] = () if choice == "none" else given.get("tools", ())
    schema = given.get("response_format")
    if tools and schema is not None:
        raise InvalidRequest("response_format", "`response_format` cannot be combined with `tools`.")
    return ChatRequest(
        asked=_asked(given, limit, logprobs),
        messages=given["messages"],
        tools=tools,
        must_call=_must_call(choice, tools),
        parallel=given.get("parallel_tool_calls", True),
        json_schema=schema,
    )


def parse_completion(data: Mapping[str, Any], fields: Fields) -> CompletionRequest:
    """Reads the body of /v1/completions.

    Args:
        data: The body.
        fields: What `completion_fields` returns.

    Raises:
        InvalidRequest: A field is missing, wrong or not supported.
    """
    given = read_fields(data, fields)
    limit = given.get("max_tokens", _DEFAULT_COMPLETION_TOKENS)
    return CompletionRequest(asked=_asked(given, limit, given.get("logprobs")), prompt=given["prompt"])


def parse_tokenize(data: Mapping[str, Any]) -> TokenizeRequest:
    """Reads the body of /tokenize.

    Raises:
        InvalidRequest: A field is missing, wrong or not supported.
    """
    given = read_fields(data, TOKENIZE_FIELDS)
    if ("prompt" in given) == ("messages" in given):
        raise InvalidRequest("prompt", "Either `prompt` or `messages` is needed.")
    plain = "prompt" in given
    for key in ("tools", "add_generation_prompt"):
        if plain and key in given:
            raise InvalidRequest(key, f"`{key}` needs `messages`.")
    return TokenizeRequest(
        model=given.get("model"),
        prompt=given.get("prompt", ""),
        messages=given.get("messages", ()),
        tools=given.get("tools", ()),
        generation_prompt=given.get("add_generation_prompt", True),
        special=given.get("add_special_tokens", plain),
    )


def _asked(given: Mapping[str, Any], limit: int | None, logprobs: int | None) -> Asked:
    stream, options = given.get("stream", False), given.get("stream_options", {})
    if options and not stream:
        raise InvalidRequest("stream_options", "`stream_options` needs `stream`.")
    temperature = given.get("temperature", 1.0)
    return Asked(
        model=given.get("model"),
        stream=stream,
        include_usage=options.get("include_usage", False),
        n=given.get("n", 1),
        max_tokens=limit,
        temperature=0.0 if temperature < COLDEST else temperature,
        top_p=max(_NARROWEST, given.get("top_p", 1.0)),
        top_k=given.get("top_k", 0),
        seed=given["seed"] % _SEEDS if "seed" in given else secrets.randbits(32),
        seeded="seed" in given,
        stop=given.get("stop", ()),
        logprobs=logprobs,
    )


def _must_call(choice: str | Mapping[str, str], tools: tuple[Tool, ...]) -> tuple[str, ...]:
    names = tuple(tool["function"]["name"] for tool in tools)
    if isinstance(choice, str):
        if choice == "required" and not names:
            raise InvalidRequest("tool_choice", "`tool_choice` needs `tools`.")
        return names if choice == "required" else ()
    if choice["name"] not in names:
        raise InvalidRequest("tool_choice", f"`tool_choice` names {choice['name'][:80]!r}, which is not in `tools`.")
    return (choice["name"],)
