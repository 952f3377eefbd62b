"""What a model cannot answer, whatever computes it."""

from __future__ import annotations

from collections.abc import Sequence

from tunerun.serve.protocol import Generate, Refused


def refusal(request: Generate, ids: Sequence[int], *, vocabulary: int, context_tokens: int) -> Refused | None:
    """Says why a request cannot be answered as it is; None when it can.

    Args:
        request: What is asked.
        ids: Token ids of its prompt.
        vocabulary: Number of the model's token ids.
        context_tokens: Prompt and answer together.
    """
    if not ids:
        return Refused(id=request.id, code="empty_prompt", message="The prompt has no tokens.")
    wrong = next((token for token in ids if not 0 <= token < vocabulary), None)
    if wrong is not None:
        message = f"Token id {wrong} is not in the vocabulary of {vocabulary} tokens."
        return Refused(id=request.id, code="invalid_token", message=message)
    wanted = 1 if request.max_new_tokens is None else request.max_new_tokens
    if len(ids) + wanted > context_tokens:
        asked = f"the prompt has {len(ids)} and the answer asks for {wanted}"
        message = f"The model's context holds {context_tokens} tokens; {asked}."
        return Refused(id=request.id, code="context_length_exceeded", message=message)
    return None
