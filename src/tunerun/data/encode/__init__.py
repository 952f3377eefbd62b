"""Rows to tokens, one module for each objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from tunerun.data.rows import Conversation, Text

Sample = tuple[npt.NDArray[Any], npt.NDArray[Any]]
"""Token ids (uint32) and trained flags (uint8), both of shape [tokens of the sample]."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """How an objective turns rows into samples, in two steps that can run side by side."""

    chat: bool
    """Whether rows are conversations, not plain text."""
    render: Callable[[Any], Sequence[Any]]
    """Python: a `Conversation` or `Text` to what is tokenised; raises ChatFault."""
    encode: Callable[[Sequence[Any]], list[list[Sample]]]
    """Rust, without the interpreter lock: for each of what `render` returned, its samples."""
    template_sha256: str | None
    """Of everything that decides a rendering; None for plain text."""


__all__ = ["Conversation", "Encoder", "Sample", "Text"]
