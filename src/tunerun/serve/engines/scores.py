"""Probabilities of tokens as OpenAI's clients read them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer as Backend

if TYPE_CHECKING:
    import numpy.typing as npt

# How SentencePiece vocabularies write a space.
_SPACE = "\u2581"
# ... and a byte that is no character.
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")

Piece = Callable[[int], bytes]
"""Returns the bytes that a token stands for."""


def score(piece: Piece, token: int, logprob: float, top: Sequence[tuple[int, float]]) -> Mapping[str, Any]:
    """Returns what is told of one token of an answer.

    Args:
        piece: Gives the bytes of tokens.
        token: The token's id.
        logprob: Its logarithmic probability, in nats.
        top: Ids and probabilities of the likeliest tokens, in order.
    """
    return {**_entry(piece, token, logprob), "top_logprobs": [_entry(piece, *item) for item in top]}


def likeliest(logits: npt.NDArray[Any], token: int, count: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Returns a token's logarithmic probability in nats, and so many of the likeliest tokens with theirs.

    Args:
        logits: As the model gives them, shape [vocabulary].
        token: Its id.
        count: How many others; 0 for none.
    """
    # Imported here: most answers need no numbers.
    import numpy as np

    wide = logits.astype(np.float64)
    highest = wide.max()
    logprobs = wide - (highest + np.log(np.exp(wide - highest).sum()))
    if count == 0:
        return float(logprobs[token]), ()
    least = np.partition(logprobs, -count)[-count]
    found = np.flatnonzero(logprobs >= least)
    # Of equally likely ones the first comes first, as in a greedy answer.
    order = found[np.argsort(-logprobs[found], kind="stable")][:count]
    return float(logprobs[token]), tuple((int(index), float(logprobs[index])) for index in order)


def pieces_of(backend: Backend) -> Piece:
    """Returns the function that gives the bytes of a tokenizer's tokens; its table is made when first asked for."""

    @cache
    def table() -> Any:
        # Imported here, with numpy: most answers tell no probabilities.
        from tunerun.chat.token_bytes import token_bytes

        return token_bytes(backend)

    def piece(token: int) -> bytes:
        known = table()
        if known is not None:
            if token >= len(known.starts):
                return b""
            start, size = known.starts[token], known.sizes[token]
            return bytes(known.data[start : start + size])
        written = backend.id_to_token(token) or ""
        found = _BYTE.fullmatch(written)
        if found is not None:
            return bytes([int(found[1], 16)])
        if _SPACE in written:
            return written.replace(_SPACE, " ").encode()
        return str(backend.decode([token], skip_special_tokens=False)).encode()

    return piece


def _entry(piece: Piece, token: int, logprob: float) -> dict[str, Any]:
    data = piece(token)
    return {"token": data.decode(errors="replace"), "bytes": list(data), "logprob": logprob}
