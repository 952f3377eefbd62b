"""Plain text to samples whose tokens are all trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunerun.chat.tokenizer import TOKENIZER_CONFIG, Tokenizer
from tunerun.data.encode import Encoder, Sample
from tunerun.data.rows import Text
from tunerun.errors import Problem, UserError


def encoder(tokenizer: Tokenizer, max_length: int) -> Encoder:
    """Returns the encoder of pre-training.

    Raises:
        UserError: The model names no end-of-sequence token, so documents could not be told apart.
    """
    end = tokenizer.token_id("eos_token")
    if end is None:
        fix = "Name an `eos_token` there that tokenizer.json knows."
        raise UserError(Problem(where=TOKENIZER_CONFIG, what="the model has no end-of-sequence token.", fix=fix))
    end_id = end

    def render(row: Text) -> list[str]:
        return [row.text]

    def encode_all(texts: Sequence[str]) -> list[list[Sample]]:
        return encode(texts, tokenizer, end_id, max_length)

    return Encoder(("text",), render, encode_all, None)


def encode(texts: Sequence[str], tokenizer: Tokenizer, end_id: int, max_length: int) -> list[list[Sample]]:
    """Tokenises documents, ends each by `end_id`, and cuts them into samples of at most `max_length` tokens.

    The tokenizer adds what it adds for a document, such as a first token; an end it adds itself is not doubled.
    """
    documents: list[list[Sample]] = []
    for encoding in tokenizer.backend.encode_batch_fast(list(texts), add_special_tokens=True):
        ids = encoding.ids
        if not ids or ids[-1] != end_id:
            ids.append(end_id)
        tokens = np.array(ids, np.uint32)
        parts = [tokens[start : start + max_length] for start in range(0, len(tokens), max_length)]
        documents.append([(part, np.ones(len(part), np.uint8)) for part in parts])
    return documents
