"""Conversations to samples whose trained tokens are the assistant's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate, chain, pairwise

import numpy as np

from tunerun.chat.faults import ChatFault
from tunerun.chat.mask import MarkedText, Renderer
from tunerun.chat.template import Span
from tunerun.chat.token_bytes import TokenBytes, token_bytes
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

    No special token is added: the template has written them all, the first one too. Between the first and the last
    token that reach into a span, all are trained.
    """
    table = _table(tokenizer.backend)
    if table is None:
        return _encode_by_offsets(rows, tokenizer)
    encodings = tokenizer.backend.encode_batch_fast([row.text for row in rows], add_special_tokens=False)
    samples = _marked_by_bytes(rows, [encoding.ids for encoding in encodings], table)
    # The tokenizer has changed these texts, as by composing an accent.
    others = [index for index, sample in enumerate(samples) if sample is None]
    again = dict(zip(others, _encode_by_offsets([rows[index] for index in others], tokenizer), strict=True))
    return [again[index] if sample is None else sample for index, sample in enumerate(samples)]


_table = cache(token_bytes)


def _marked_by_bytes(rows: Sequence[MarkedText], ids: Sequence[list[int]], table: TokenBytes) -> list[Sample | None]:
    """Marks the trained tokens of a batch by the bytes that each token stands for.

    Returns:
        A sample for each row, or None where the bytes of its tokens are not those of its text.
    """
    flat = list(chain.from_iterable(ids))
    joined = b"".join([table[token] for token in flat])
    tokens = np.array(flat, np.uint32)
    edges = np.concatenate([[0], np.cumsum(table.sizes[tokens])])
    bounds = np.cumsum([0, *map(len, ids)])
    same: list[bool] = []
    starts: list[int] = []
    ends: list[int] = []
    for row, (first, last) in zip(rows, pairwise(edges[bounds].tolist()), strict=True):
        data, spans = _in_bytes(row)
        same.append(joined[first:last] == data)
        if same[-1]:
            starts += [first + start for start, _ in spans]
            ends += [first + end for _, end in spans]
    # A token reaches into a span when it ends after the span's start and starts before the span's end.
    changes = np.zeros(len(edges), np.int8)
    np.add.at(changes, np.searchsorted(edges[1:], starts, "right"), 1)
    np.add.at(changes, np.searchsorted(edges[:-1], ends, "left"), -1)
    trained = (np.cumsum(changes[:-1]) > 0).view(np.uint8)
    parts = pairwise(bounds.tolist())
    return [
        (tokens[first:last], trained[first:last]) if found else None
        for (first, last), found in zip(parts, same, strict=True)
    ]


def _in_bytes(row: MarkedText) -> tuple[bytes, Sequence[Span]]:
    """Returns the text in UTF-8 and its trained spans in bytes."""
    data = row.text.encode()
    if len(data) == len(row.text):
        return data, row.trained
    cuts = [0, *chain.from_iterable(row.trained)]
    places = list(accumulate(len(row.text[start:end].encode()) for start, end in pairwise(cuts)))
    return data, list(zip(places[::2], places[1::2], strict=True))


def _encode_by_offsets(rows: Sequence[MarkedText], tokenizer: Tokenizer) -> list[Sample]:
    """Tokenises renderings and marks the trained tokens by the characters that the tokenizer says each holds."""
    encodings = tokenizer.backend.encode_batch([row.text for row in rows], add_special_tokens=False)
    samples: list[Sample] = []
    for row, encoding in zip(rows, encodings, strict=True):
        trained = np.zeros(len(encoding), np.uint8)
        starts, ends = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
        for start, end in row.trained:
            inside = np.flatnonzero((starts < end) & (ends > start))
            if len(inside):
                trained[inside[0] : inside[-1] + 1] = 1
        samples.append((np.array(encoding.ids, np.uint32), trained))
    return samples


def _check_encodable(text: str) -> None:
    """Refuses half surrogate pairs, which JSON escapes can bring in anywhere, tools and their arguments too."""
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ChatFault("bad-encoding", "the row holds half a surrogate pair.") from error
