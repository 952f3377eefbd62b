"""Conversations to samples whose trained tokens are the assistant's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tokenizers import Encoding

from tunerun.chat.faults import ChatFault
from tunerun.chat.mask import MarkedText, Renderer
from tunerun.chat.tokenizer import Tokenizer
from tunerun.data.encode import Encoder, Sample
from tunerun.data.rows import Conversation


def encoder(renderer: Renderer) -> Encoder:
    """Returns the encoder of supervised fine-tuning."""

    def render(row: Conversation) -> list[MarkedText]:
        rows = renderer.rows(row.messages, row.tools, row.untrained)
        for made in rows:
            _check_encodable(made.text)
        return rows

    def encode_all(rows: Sequence[MarkedText]) -> list[list[Sample]]:
        return [[sample] for sample in encode(rows, renderer.tokenizer)]

    return Encoder(("conversations",), render, encode_all, renderer.template.sha256)


def encode(rows: Sequence[MarkedText], tokenizer: Tokenizer) -> list[Sample]:
    """Tokenises renderings as a whole and marks the tokens of their trained spans.

    No special token is added: the template has written them all, the first one too. A token that reaches into a span
    is trained.
    """
    encodings = tokenizer.backend.encode_batch([row.text for row in rows], add_special_tokens=False)
    samples: list[Sample] = []
    for row, encoding in zip(rows, encodings, strict=True):
        trained = np.zeros(len(encoding), np.uint8)
        for start, end in row.trained:
            trained[_token_at(encoding, start, len(row.text)) : _token_at(encoding, end, len(row.text))] = 1
        samples.append((np.array(encoding.ids, np.uint32), trained))
    return samples


def _check_encodable(text: str) -> None:
    """Refuses half surrogate pairs, which JSON escapes can bring in anywhere, tools and their arguments too."""
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ChatFault("bad-encoding", "the row holds half a surrogate pair.") from error


def _token_at(encoding: Encoding, position: int, end: int) -> int:
    """Returns the first token that holds the character at a position or a later one."""
    while position < end:
        # None: the tokenizer left the character out of its offsets, as with a space before a word.
        token = encoding.char_to_token(position)
        if token is not None:
            return int(token)
        position += 1
    return len(encoding)
