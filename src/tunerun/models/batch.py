"""Rows of a token store laid end to end as one micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tunerun.formats.tokens import TokenStore


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
    """Lays rows of a store end to end.

    The first token of a segment is never a target: nothing predicts it.

    Args:
        store: Token store.
        rows: Row numbers.
        device: Where the tensors go.
    """
    spans = [slice(int(store.offsets[row]), int(store.offsets[row + 1])) for row in rows]
    tokens = np.concatenate([store.tokens[span] for span in spans]).astype(np.int64)
    segments = np.concatenate([store.segments[span] for span in spans])
    trained = np.concatenate([store.trained[span] for span in spans]).astype(bool)
    opens = np.ones(len(tokens), dtype=bool)
    opens[1:] = segments[1:] != segments[:-1]
    opens[np.cumsum([0] + [span.stop - span.start for span in spans[:-1]])] = True
    starts = np.flatnonzero(opens)
    lengths = np.diff(np.append(starts, len(tokens)))
    places = np.flatnonzero(trained & ~opens)

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device)

    return MicroBatch(
        input_ids=tensor(tokens)[None],
        position_ids=tensor(np.arange(len(tokens)) - np.repeat(starts, lengths))[None],
        segment_lengths=tuple(lengths.tolist()),
        predicting=tensor(places - 1),
        targets=tensor(tokens[places]),
        samples=tuple(segments[starts].tolist()),
    )
