"""Rows to tokens, one module for each kind of rows that objectives learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from tunerun.data.rows import RowKind

Sample = tuple[npt.NDArray[Any], npt.NDArray[Any]]
"""Token ids (uint32) and trained flags (uint8), both of shape [tokens of the sample]."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt; both samples begin with the same prompt tokens and are trained from there on."""

    chosen: Sample
    rejected: Sample
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class LabelledSample:
    """An answer that is good or bad."""

    sample: Sample
    desirable: bool


Example = Sample | Pair | LabelledSample
"""What a step of training counts as one."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """How an objective turns rows into examples, in two steps that can run side by side."""

    kinds: tuple[RowKind, ...]
    """Rows it learns from, the best first, which is also what examples are."""
    render: Callable[[Any], Sequence[Any]]
    """Python: a row's `Content` to what is tokenised, an item for each example, whose length is its number of
    characters; raises ChatFault."""
    encode: Callable[[Sequence[Any]], list[list[Any]]]
    """Rust, without the interpreter lock: for each of what `render` returned, its examples."""
    template_sha256: str | None
    """Of everything that decides a rendering; None for plain text."""

    @property
    def paired(self) -> bool:
        """Whether examples are pairs."""
        return self.kinds[0] == "pairs"

    @property
    def labelled(self) -> bool:
        """Whether examples have a label."""
        return self.kinds[0] == "labels"


def samples_of(example: Example) -> tuple[Sample, ...]:
    """Returns the rows of an example as they are stored: one, or the chosen and the rejected one."""
    if isinstance(example, Pair):
        return example.chosen, example.rejected
    return (example.sample,) if isinstance(example, LabelledSample) else (example,)


def label_of(example: Example) -> bool | None:
    """Returns the label of an example that has one."""
    return example.desirable if isinstance(example, LabelledSample) else None
