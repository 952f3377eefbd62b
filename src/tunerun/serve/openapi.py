"""/openapi.json: the gateway's endpoints, with the request bodies as the tables of `requests` have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunerun import __version__
from tunerun.serve.fields import Fields, object_schema
from tunerun.serve.requests import TOKENIZE_FIELDS

Document = Mapping[str, Any]

_JSON = "application/json"
_STRING = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
# Of a stream; its data is a chunk as JSON, or [DONE].
_EVENT = {"type": "object", "properties": {"data": _STRING}, "required": ["data"]}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": _STRING,
                "type": _STRING,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
_MODEL = {
    "type": "object",
    "properties": {"id": _STRING, "object": {"const": "model"}, "created": _COUNT, "owned_by": _STRING},
    "required": ["id", "object", "created", "owned_by"],
}
_MODELS = {
    "type": "object",
    "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": _MODEL, "minItems": 1}},
    "required": ["object", "data"],
}
_TOKENS = {
    "type": "object",
    "properties": {"tokens": {"type": "array", "items": _COUNT}, "count": _COUNT, "max_model_len": _COUNT},
    "required": ["tokens", "count", "max_model_len"],
}
_USAGE = {
    "type": "object",
    "properties": dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), _COUNT),
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
}
_CHOICE = {
    "index": _COUNT,
    "logprobs": {"type": ["object", "null"]},
    "finish_reason": {"enum": ["stop", "length", "tool_calls"]},
}
_CALL = {
    "type": "object",
    "properties": {
        "id": _STRING,
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "properties": {"name": _STRING, "arguments": _STRING},
            "required": ["name", "arguments"],
        },
    },
    "required": ["id", "type", "function"],
}
_MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"const": "assistant"},
        "content": {"type": ["string", "null"]},
        "tool_calls": {"type": "array", "items": _CALL, "minItems": 1},
    },
    "required": ["role", "content"],
}
_HEALTH = {"type": "object", "properties": {"status": _STRING}, "required": ["status"]}

_KEY = "key"
# What a request may come to, whatever it asks for.
_GUARDED = {401: "The key is missing or wrong.", 403: "Host or Origin name another server."}
_BODY = {
    **_GUARDED,
    400: "The request is not as it should be.",
    404: "There is no such model.",
    408: "The body came too slowly.",
    413: "The body is too long.",
    415: "The body is not declared as JSON.",
    503: "The engine is starting.",
    504: "The time for a request is over.",
}
_COMPUTED = {**_BODY, 429: "Too many answers are being computed.", 500: "The answer could not be computed."}


def document(chat: Fields, completion: Fields) -> Document:
    """Returns the OpenAPI document.

    Args:
        chat: Fields of /v1/chat/completions.
        completion: Fields of /v1/completions.
    """
    paths = {
        "/health": {
            "get": {**_operation("Whether the models are ready", _HEALTH, {403: _GUARDED[403]}), "security": []}
        },
        "/metrics": {"get": _operation("Metrics for Prometheus", None, _GUARDED)},
        "/openapi.json": {"get": _operation("This document", {"type": "object"}, _GUARDED)},
        "/tokenize": {"post": _asking("Tokens of a prompt", TOKENIZE_FIELDS, _TOKENS, _BODY)},
        "/v1/models": {"get": _operation("The models", _MODELS, _GUARDED)},
        "/v1/models/{name}": {
            "get": {
                **_operation("One of the models", _MODEL, {**_GUARDED, 404: _BODY[404]}),
                "parameters": [{"name": "name", "in": "path", "required": True, "schema": {**_STRING, "minLength": 1}}],
            }
        },
        "/v1/chat/completions": {"post": _asking("Answer a conversation", chat, _reply(_MESSAGE), _COMPUTED)},
        "/v1/completions": {"post": _asking("Continue a text", completion, _reply(None), _COMPUTED)},
    }
    paths["/health"]["get"]["responses"]["503"] = _answer("An engine is starting.", _HEALTH)
    return {
        "openapi": "3.1.0",
        "info": {"title": "tunerun serve", "version": __version__},
        "security": [{}, {_KEY: []}],
        "components": {"securitySchemes": {_KEY: {"type": "http", "scheme": "bearer"}}},
        "paths": paths,
    }


def _reply(message: Mapping[str, Any] | None) -> Document:
    body: dict[str, Any] = {"text": _STRING} if message is None else {"message": message}
    choice = {"type": "object", "properties": {**_CHOICE, **body}, "required": [*_CHOICE, *body]}
    head = {"id": _STRING, "object": _STRING, "created": _COUNT, "model": _STRING}
    choices = {"type": "array", "items": choice, "minItems": 1}
    properties = {**head, "choices": choices, "usage": _USAGE}
    return {"type": "object", "properties": properties, "required": list(properties)}


def _asking(summary: str, fields: Fields, reply: Document, errors: Mapping[int, str]) -> dict[str, Any]:
    body = {"required": True, "content": {_JSON: {"schema": object_schema(fields)}}}
    operation = {**_operation(summary, reply, errors), "requestBody": body}
    if "stream" in fields:
        operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": _EVENT}
    return operation


def _operation(summary: str, reply: Document | None, errors: Mapping[int, str]) -> dict[str, Any]:
    good = (
        _answer("Done.", reply) if reply else {"description": "Done.", "content": {"text/plain": {"schema": _STRING}}}
    )
    responses = {"200": good, **{str(status): _answer(text, _ERROR) for status, text in sorted(errors.items())}}
    return {"summary": summary, "responses": responses}


def _answer(description: str, schema: Document) -> dict[str, Any]:
    return {"description": description, "content": {_JSON: {"schema": schema}}}
