"""Builds what OpenAI clients read: completions, chunks, model lists and errors."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What all objects of one answer share."""

    kind: Literal["chat", "completion"]
    id: str
    created: int
    """Unix time, in seconds."""
    model: str

    def opening(self) -> Mapping[str, Any] | None:
        """Returns the chunk that names the speaker, or None for plain completions."""
        if self.kind == "completion":
            return None
        return self._chunk({"delta": {"role": "assistant", "content": ""}, "finish_reason": None})

    def delta(self, text: str) -> Mapping[str, Any]:
        """Returns a chunk with more text."""
        body = {"text": text} if self.kind == "completion" else {"delta": {"content": text}}
        return self._chunk({**body, "finish_reason": None})

    def closing(self, reason: str) -> Mapping[str, Any]:
        """Returns the chunk that says why the answer ended."""
        body: dict[str, Any] = {"text": ""} if self.kind == "completion" else {"delta": {}}
        return self._chunk({**body, "finish_reason": reason})

    def usage_chunk(self, prompt_tokens: int, completion_tokens: int) -> Mapping[str, Any]:
        """Returns the chunk that ends a stream whose client asked for usage."""
        return {**self._head(streamed=True), "choices": [], "usage": usage(prompt_tokens, completion_tokens)}

    def whole(self, text: str, reason: str, prompt_tokens: int, completion_tokens: int) -> Mapping[str, Any]:
        """Returns an answer that is not streamed."""
        body = {"text": text} if self.kind == "completion" else {"message": {"role": "assistant", "content": text}}
        choice = {"index": 0, **body, "logprobs": None, "finish_reason": reason}
        return {
            **self._head(streamed=False),
            "choices": [choice],
            "usage": usage(prompt_tokens, completion_tokens),
        }

    def _chunk(self, choice: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**self._head(streamed=True), "choices": [{"index": 0, "logprobs": None, **choice}]}

    def _head(self, *, streamed: bool) -> dict[str, Any]:
        name = "text_completion"
        if self.kind == "chat":
            name = "chat.completion.chunk" if streamed else "chat.completion"
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}


def new_reply(kind: Literal["chat", "completion"], model: str) -> Reply:
    """Starts an answer with an id of its own."""
    prefix = "chatcmpl" if kind == "chat" else "cmpl"
    return Reply(kind=kind, id=f"{prefix}-{uuid.uuid4().hex}", created=int(time.time()), model=model)


def usage(prompt_tokens: int, completion_tokens: int) -> Mapping[str, int]:
    """Returns token counts."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def model(name: str, created: int) -> Mapping[str, Any]:
    """Returns a served model."""
    return {"id": name, "object": "model", "created": created, "owned_by": "tunerun"}


def models(names: Iterable[str], created: int) -> Mapping[str, Any]:
    """Returns the list of served models."""
    return {"object": "list", "data": [model(name, created) for name in names]}


def error(status: int, message: str, *, code: str | None = None, field: str | None = None) -> Mapping[str, Any]:
    """Returns an error body.

    Args:
        status: HTTP status; decides the type.
        message: One sentence.
        code: Short stable name.
        field: The field of the request at fault.
    """
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": field, "code": code}}


def event(body: Mapping[str, Any]) -> bytes:
    """Turns a chunk into a server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"
