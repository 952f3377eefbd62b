"""What the losses on pairs of a chosen and a rejected answer share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tunerun.formats.pairs import PairStore
from tunerun.models.batch import lay_out
from tunerun.models.loss import segment_log_probs
from tunerun.train.objectives.objective import Batch, Examples, Sums, summed

CHOSEN, REJECTED = "chosen", "rejected"


def collate(examples: Examples, rows: Sequence[int], device: str) -> Batch:
    """Lays the chosen answers of some pairs end to end, and the rejected ones after them."""
    store = examples.store
    assert isinstance(store, PairStore), "the data stage writes pairs for this objective"
    laid = lay_out([side.row(row) for side in (store.chosen, store.rejected) for row in rows], device)
    assert len(laid.segment_lengths) == 2 * len(rows), "a row of a pair is one sample"
    return Batch(laid=laid, rows=len(rows), tokens=int((laid.target_segments < len(rows)).sum()))


def collate_with_reference(examples: Examples, rows: Sequence[int], device: str) -> Batch:
    """As `collate`, with the reference log-probabilities in the same order."""
    wanted = torch.tensor(rows)
    reference = torch.cat([examples.reference[side][wanted] for side in (CHOSEN, REJECTED)])
    return replace(collate(examples, rows, device), reference=reference.to(device))


def reference(network: Any, examples: Examples, rows: Sequence[int], device: str) -> dict[str, Tensor]:
    """Computes the log-probabilities of both sides of some pairs, each of shape (rows,)."""
    chosen, rejected = segment_log_probs(network, collate(examples, rows, device).laid).chunk(2)
    return {CHOSEN: chosen, REJECTED: rejected}


def answer_tokens(batch: Batch) -> tuple[Tensor, Tensor]:
    """Counts the trained tokens of the chosen and of the rejected answers, each (pairs,), at least 1."""
    places = batch.laid.target_segments
    # `bincount` would make the host wait for the device.
    counts = places.new_zeros(2 * batch.rows).index_add_(0, places, torch.ones_like(places)).clamp(min=1)
    chosen, rejected = counts.chunk(2)
    return chosen, rejected


def metrics(rewards: tuple[Tensor, Tensor], log_probs: tuple[Tensor, Tensor] | None = None) -> Sums:
    """Measures pairs under the names that TRL uses.

    Args:
        rewards: Of the chosen and of the rejected answers, each (pairs,).
        log_probs: As `rewards`, in nats; None when the loss has none.
    """
    chosen, rejected = rewards
    found = summed(
        rewards__chosen=chosen,
        rewards__rejected=rejected,
        rewards__margins=chosen - rejected,
        rewards__accuracies=(chosen > rejected).float(),
    )
    return found if log_probs is None else {**found, **summed(logps__chosen=log_probs[0], logps__rejected=log_probs[1])}
