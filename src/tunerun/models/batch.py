"""Rows of a token store laid end to end as one micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tunerun.formats.tokens import Array, TokenStore

Row = tuple[Array, Array, Array]
"""Tokens, trained flags and sample numbers of a row, each of shape [tokens of the row]."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Samples that are computed together, as one row without padding."""

    input_ids: Tensor
    """(1, tokens), int64."""
    position_ids: Tensor
    """(1, tokens), int64; restarts at 0 with each segment."""
    segment_lengths: tuple[int, ...]
    """Tokens of each segment, in order."""
    predicting: Tensor
    """(trained tokens,), int64: places whose next token is learned."""
    targets: Tensor
    """(trained tokens,), int64: those next tokens."""
    target_segments: Tensor
    """(trained tokens,), int64: which segment each of them is in, from 0."""
    samples: tuple[int, ...]
    """Sample number of each segment."""

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.input_ids.shape[1]

    @property
    def trained_tokens(self) -> int:
        """Number of tokens the loss is taken over."""
        return self.targets.shape[0]


def collate(store: TokenStore, rows: Sequence[int], device: str) -> MicroBatch:
    """Lays rows of a store end to end, as `lay_out` does.

    Args:
        store: Token store.
        rows: Row numbers.
        device: Where the tensors go.
    """
    return lay_out([store.row(row) for row in rows], device)


def lay_out(rows: Sequence[Row], device: str) -> MicroBatch:
    """Lays rows end to end.

    The first token of a segment is never a target: nothing predicts it.

    Args:
        rows: At least one.
        device: Where the tensors go.
    """
    tokens, trained, segments = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    tokens = tokens.astype(np.int64)
    opens = np.ones(len(tokens), dtype=bool)
    opens[1:] = segments[1:] != segments[:-1]
    opens[np.cumsum([0] + [len(row[0]) for row in rows[:-1]])] = True
    starts = np.flatnonzero(opens)
    lengths = np.diff(np.append(starts, len(tokens)))
    places = np.flatnonzero(trained.astype(bool) & ~opens)

    def tensor(values: Array) -> Tensor:
        return torch.from_numpy(values).to(device)

    return MicroBatch(
        input_ids=tensor(tokens)[None],
        position_ids=tensor(np.arange(len(tokens)) - np.repeat(starts, lengths))[None],
        segment_lengths=tuple(lengths.tolist()),
        predicting=tensor(places - 1),
        targets=tensor(tokens[places]),
        target_segments=tensor(np.cumsum(opens)[places] - 1),
        samples=tuple(segments[starts].tolist()),
    )
