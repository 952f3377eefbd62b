"""What a model cannot answer, whatever computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tunerun.serve.protocol import Generate, Refused


class Model(Protocol):
    """What decides whether a prompt can be answered."""

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""

    @property
    def context_tokens(self) -> int:
        """Prompt and answer together."""

    def encode(self, text: str, *, plain: bool) -> list[int]:
        """Turns text into token ids."""


def admit(request: Generate, model: Model) -> tuple[list[int], int] | Refused:
    """Returns the token ids of a request's prompt and the most tokens of its answer, or why it cannot be answered."""
    prompt = request.prompt
    ids = model.encode(prompt, plain=request.plain) if isinstance(prompt, str) else list(prompt)
    refused = _refusal(request, ids, vocabulary=model.vocabulary, context_tokens=model.context_tokens)
    if refused is not None:
        return refused
    left = model.context_tokens - len(ids)
    return ids, left if request.max_new_tokens is None else min(left, request.max_new_tokens)


def _refusal(request: Generate, ids: Sequence[int], *, vocabulary: int, context_tokens: int) -> Refused | None:
    if not ids:
        return Refused(id=request.id, code="empty_prompt", message="The prompt has no tokens.")
    wrong = next((token for token in ids if not 0 <= token < vocabulary), None)
    if wrong is not None:
        message = f"Token id {wrong} is not in the vocabulary of {vocabulary} tokens."
        return Refused(id=request.id, code="invalid_token", message=message)
    wanted = request.room or request.max_new_tokens or 1
    if len(ids) + wanted > context_tokens:
        asked = f"the prompt has {len(ids)} and the answer asks for {wanted}"
        message = f"The model's context holds {context_tokens} tokens; {asked}."
        return Refused(id=request.id, code="context_length_exceeded", message=message)
    return None
