"""Builds what OpenAI clients read: completions, chunks, model lists and errors."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunerun.serve.tools import Call

DONE = b"data: [DONE]\n\n"

Kind = Literal["chat", "completion"]
Scores = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What all objects of one reply share."""

    kind: Kind
    id: str
    created: int
    """Unix time, in seconds."""
    model: str

    def opening(self, index: int) -> Mapping[str, Any] | None:
        """Returns the chunk that names the speaker of a choice, or None for plain completions."""
        if self.kind == "completion":
            return None
        return self._chunk(index, {"delta": {"role": "assistant", "content": ""}}, None, None)

    def text(self, index: int, text: str, logprobs: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Returns a chunk with more text of a choice."""
        body = {"text": text} if self.kind == "completion" else {"delta": {"content": text}}
        return self._chunk(index, body, logprobs, None)

    def call(
        self, index: int, number: int, call: Mapping[str, Any], logprobs: Mapping[str, Any] | None = None
    ) -> Mapping[str, Any]:
        """Returns a chunk with the next tool call of a choice, whole."""
        return self._chunk(index, {"delta": {"tool_calls": [{"index": number, **call}]}}, logprobs, None)

    def closing(self, index: int, reason: str, logprobs: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Returns the chunk that says why a choice ended."""
        body: dict[str, Any] = {"text": ""} if self.kind == "completion" else {"delta": {}}
        return self._chunk(index, body, logprobs, reason)

    def usage_chunk(self, prompt_tokens: int, completion_tokens: int) -> Mapping[str, Any]:
        """Returns the chunk that ends a stream whose client asked for usage."""
        return {**self._head(streamed=True), "choices": [], "usage": usage(prompt_tokens, completion_tokens)}

    def choice(
        self,
        index: int,
        text: str,
        calls: Sequence[Mapping[str, Any]],
        logprobs: Mapping[str, Any] | None,
        reason: str,
    ) -> Mapping[str, Any]:
        """Returns a choice that is not streamed."""
        body: dict[str, Any] = {"text": text}
        if self.kind == "chat":
            message: dict[str, Any] = {"role": "assistant", "content": text or None if calls else text}
            body = {"message": {**message, "tool_calls": list(calls)} if calls else message}
        return {"index": index, **body, "logprobs": logprobs, "finish_reason": reason}

    def whole(
        self, choices: Sequence[Mapping[str, Any]], prompt_tokens: int, completion_tokens: int
    ) -> Mapping[str, Any]:
        """Returns a reply that is not streamed."""
        counts = usage(prompt_tokens, completion_tokens)
        return {**self._head(streamed=False), "choices": list(choices), "usage": counts}

    def _chunk(
        self, index: int, body: Mapping[str, Any], logprobs: Mapping[str, Any] | None, reason: str | None
    ) -> Mapping[str, Any]:
        choice = {"index": index, **body, "logprobs": logprobs, "finish_reason": reason}
        return {**self._head(streamed=True), "choices": [choice]}

    def _head(self, *, streamed: bool) -> dict[str, Any]:
        name = "text_completion"
        if self.kind == "chat":
            name = "chat.completion.chunk" if streamed else "chat.completion"
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}


def new_reply(kind: Kind, model: str) -> Reply:
    """Starts a reply with an id of its own."""
    prefix = "chatcmpl" if kind == "chat" else "cmpl"
    return Reply(kind=kind, id=f"{prefix}-{secrets.token_hex(16)}", created=int(time.time()), model=model)


def tool_call(call: Call) -> Mapping[str, Any]:
    """Returns a tool call with an id of its own: nine letters and digits, all that Mistral's templates accept."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": secrets.token_hex(5)[:9], "type": "function", "function": function}


def chat_logprobs(scores: Scores) -> Mapping[str, Any]:
    """Returns the probabilities of tokens as chat completions have them."""
    return {"content": list(scores), "refusal": None}


def completion_logprobs(scores: Scores, offset: int) -> Mapping[str, Any]:
    """Returns the probabilities of tokens as plain completions have them.

    Args:
        scores: Of each token.
        offset: Characters of the answer before them.
    """
    tokens = [score["token"] for score in scores]
    offsets = [offset + sum(map(len, tokens[:count])) for count in range(len(tokens))]
    return {
        "tokens": tokens,
        "token_logprobs": [score["logprob"] for score in scores],
        "top_logprobs": [{top["token"]: top["logprob"] for top in score["top_logprobs"]} for score in scores],
        "text_offset": offsets,
    }


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


def tokens(ids: Sequence[int], context: int) -> Mapping[str, Any]:
    """Returns the tokens of a prompt, as vLLM's /tokenize does."""
    return {"tokens": ids, "count": len(ids), "max_model_len": context}


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
