"""What an objective is to the training loop: how rows become a batch, and the batch a loss.

A loss is divided by counts of the whole global batch (`Totals`), never by those of a micro-batch, so that any split of
a global batch into micro-batches gives the same gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from tunerun.config.schema import ObjectiveConfig
from tunerun.formats.pairs import PairStore
from tunerun.formats.tokens import Array, TokenStore
from tunerun.models.batch import MicroBatch, moved

Sums = Mapping[str, tuple[Tensor | float, int]]
"""Metrics by name, each a sum (a scalar tensor; a number once it is read) and the number of things it is over; their
quotient is logged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """The prepared rows of an objective."""

    store: TokenStore | PairStore
    reference: Mapping[str, Tensor] = field(default_factory=dict)
    """Log-probabilities under the model as it was before the first step, each of shape (rows,), float32."""
    partners: Array | None = None
    """Of KTO: for each row the one whose answer is put after its prompt, shape [rows]."""

    def __len__(self) -> int:
        return len(self.store)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Rows that are computed together."""

    laid: MicroBatch
    """Of pairs, all chosen answers and then all rejected ones."""
    rows: int
    """Number of rows, or of pairs."""
    tokens: int
    """Trained tokens that a mean over tokens is taken over; of pairs, those of the chosen answers."""
    labels: Tensor | None = None
    """(rows,), bool: whether the answer is desirable; None without labels."""
    reference: Tensor | None = None
    """(segments,), float32: log-probabilities under the reference; None when the loss needs none."""

    def to(self, device: str) -> Batch:
        """Returns the batch on a device; the copies go on while the host does other things."""
        labels, reference = (None if value is None else moved(value, device) for value in (self.labels, self.reference))
        return replace(self, laid=self.laid.to(device), labels=labels, reference=reference)


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """What a micro-batch has to know of its whole global batch."""

    tokens: int
    """Trained tokens, as in `Batch.tokens`."""
    rows: int
    """Rows, or pairs."""
    kl: float = 0.0
    """Of KTO: the estimate of KL(policy || reference), in nats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What stays the same for all batches."""

    config: ObjectiveConfig
    teacher: Any = None
    """Of distill: the transformers model that is imitated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What an objective makes of a micro-batch."""

    loss: Tensor
    """Scalar float32: the micro-batch's part of the mean loss of the global batch."""
    sums: Sums = field(default_factory=dict)
    """Metrics."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """An entry of the table of objectives."""

    collate: Callable[[Examples, Sequence[int], str], Batch]
    """Puts rows of the examples on a device."""
    loss: Callable[[Any, Batch, Totals, Setting], Outcome]
    """Takes the network."""
    unit: Literal["tokens", "rows"]
    """What the mean loss is over, to average the losses of several steps."""
    reference: Callable[[Any, Examples, Sequence[int], str], dict[str, Tensor]] | None = None
    """Computes the reference log-probabilities of some rows; None when the loss needs none."""
    kl: Callable[[Any, Examples, Sequence[int], str], Tensor] | None = None
    """Of KTO: policy minus reference log-probability of mismatched rows, shape (rows,)."""


def add_sums(one: Sums, other: Sums) -> dict[str, tuple[Tensor | float, int]]:
    """Adds up metrics; one that is missing counts nothing."""
    added = dict(one)
    for name, (value, count) in other.items():
        before = added.get(name)
        added[name] = (value, count) if before is None else (before[0] + value, before[1] + count)
    return added


def means(sums: Sums) -> dict[str, float]:
    """Turns metrics into numbers; what counted nothing is left out.

    Of answers without pairs, the margin is the difference of the mean rewards.
    """
    found = {name: float(value) / count for name, (value, count) in sums.items() if count}
    if {"rewards/chosen", "rewards/rejected"} <= found.keys():
        found.setdefault("rewards/margins", found["rewards/chosen"] - found["rewards/rejected"])
    return found


def summed(**values: Tensor) -> Sums:
    """Makes metrics of tensors of shape (things,); two underscores in a name stand for a slash."""
    return {name.replace("__", "/"): (value.detach().sum(), value.numel()) for name, value in values.items()}
