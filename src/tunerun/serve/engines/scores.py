"""Probabilities of tokens as OpenAI's clients read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer as Backend

_REPLACEMENT = "\ufffd"


def score(backend: Backend, token: int, logprob: float, top: Sequence[tuple[int, float]]) -> Mapping[str, Any]:
    """Returns what is told of one token of an answer.

    Args:
        backend: Gives tokens their text.
        token: The token's id.
        logprob: Its logarithmic probability, in nats.
        top: Ids and probabilities of the likeliest tokens, in order.
    """
    return {**_entry(backend, token, logprob), "top_logprobs": [_entry(backend, *item) for item in top]}


def _entry(backend: Backend, token: int, logprob: float) -> dict[str, Any]:
    text = backend.decode([token], skip_special_tokens=False)
    # Half a character has no text of its own.
    data = None if _REPLACEMENT in text else list(text.encode())
    return {"token": text, "bytes": data, "logprob": logprob}
