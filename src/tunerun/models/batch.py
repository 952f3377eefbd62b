"""Rows of a token store laid end to end as one micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
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
    segment_bounds: Tensor
    """(segments + 1,), int32: where each segment starts, and the end; with padding, that is the last segment."""
    predicting: Tensor
    """(trained tokens,), int64: places whose next token is learned."""
    targets: Tensor
    """(trained tokens,), int64: those next tokens."""
    target_segments: Tensor
    """(trained tokens,), int64: which segment each of them is in, from 0."""
    samples: tuple[int, ...]
    """Sample number of each segment."""
    padding: int = 0
    """Tokens after the last segment that belong to none."""

    @property
    def tokens(self) -> int:
        """Number of tokens, without padding."""
        return self.input_ids.shape[1] - self.padding

    @property
    def trained_tokens(self) -> int:
        """Number of tokens the loss is taken over."""
        return self.targets.shape[0]

    def to(self, device: str) -> MicroBatch:
        """Returns the micro-batch on a device; the copies go on while the host does other things."""
        if device == self.input_ids.device.type:
            return self
        values = ((item.name, getattr(self, item.name)) for item in fields(self))
        tensors: dict[str, Any] = {name: moved(value, device) for name, value in values if isinstance(value, Tensor)}
        return replace(self, **tensors)


def moved(tensor: Tensor, device: str) -> Tensor:
    """Returns a tensor of the host on a device; the copy goes on while the host does other things."""
    return tensor if device == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def padded(batch: MicroBatch, multiple: int) -> MicroBatch:
    """Fills a micro-batch up with tokens that see only each other and are not learned.

    Kernels for matrix products in half precision are chosen, and on a CPU made, for each number of tokens anew; packed
    rows that differ by a few tokens have the same one then.

    Args:
        batch: On the host, without padding, or padded to this multiple.
        multiple: The number of tokens becomes one of its multiples.
    """
    padding = -batch.input_ids.shape[1] % multiple
    if not padding:
        return batch
    return replace(
        batch,
        input_ids=F.pad(batch.input_ids, (0, padding)),
        position_ids=torch.cat([batch.position_ids, torch.arange(padding)[None]], 1),
        segment_bounds=torch.cat([batch.segment_bounds, batch.segment_bounds[-1:] + padding]),
        padding=padding,
    )


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
        segment_bounds=tensor(np.append(starts, len(tokens)).astype(np.int32)),
        predicting=tensor(places - 1),
        targets=tensor(tokens[places]),
        target_segments=tensor(np.cumsum(opens)[places] - 1),
        samples=tuple(segments[starts].tolist()),
    )
