"""Shows samples as the model will see them: special tokens visible, trained text marked, long texts shortened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from tunerun import columns
from tunerun.chat.tokenizer import Tokenizer
from tunerun.formats.pairs import CHOSEN, REJECTED, PairStore
from tunerun.formats.tokens import TokenStore

_SAMPLES = 3
_PLAIN = (">>>", "<<<")
_COLOUR = ("\x1b[32m", "\x1b[0m")

# Of each stretch of trained or untrained text, and of such stretches in a sample.
_MAX_CHARACTERS = 600
_MAX_STRETCHES = 12


@dataclass(frozen=True, slots=True)
class _Style:
    """How trained text is marked."""

    tokenizer: Tokenizer
    opening: str
    closing: str


def preview(store: TokenStore | PairStore, tokenizer: Tokenizer, *, colour: bool = False) -> str:
    """Renders the first samples of a store.

    Args:
        store: A token store, or one of pairs, whose sides are shown one after the other.
        tokenizer: The one that made it.
        colour: Whether trained text is green, for a terminal, instead of between `>>>` and `<<<`.
    """
    style = _Style(tokenizer, *(_COLOUR if colour else _PLAIN))
    return "\n".join(_pairs(store, style) if isinstance(store, PairStore) else _samples(store, style))


def _pairs(store: PairStore, style: _Style) -> Iterator[str]:
    for row in range(min(_SAMPLES, len(store))):
        for name, side in ((CHOSEN, store.chosen), (REJECTED, store.rejected)):
            tokens, trained, _ = side.row(row)
            yield _shown(f"pair {row + 1}, {name}", tokens, trained, style)


def _samples(store: TokenStore, style: _Style) -> Iterator[str]:
    shown = 0
    for row in range(len(store)):
        tokens, trained, segments = store.row(row)
        label = "" if store.labels is None else f", {'good' if store.labels[row] else 'bad'} answer"
        for number in np.unique(segments):
            if shown == _SAMPLES:
                return
            shown += 1
            inside = segments == number
            yield _shown(f"sample {shown}{label}", tokens[inside], trained[inside], style)


def _shown(title: str, tokens: npt.NDArray[Any], trained: npt.NDArray[Any], style: _Style) -> str:
    starts = [0, *(np.flatnonzero(np.diff(trained.astype(np.int8))) + 1).tolist(), len(tokens)]
    parts = []
    for start, end in pairwise(starts):
        text = _shortened(style.tokenizer.decode(tokens[start:end].tolist(), skip_special_tokens=False))
        parts.append(f"{style.opening}{text}{style.closing}" if trained[start] else text)
    if len(parts) > _MAX_STRETCHES:
        half = _MAX_STRETCHES // 2
        parts[half:-half] = [f"\n[... {len(parts) - 2 * half} parts ...]\n"]
    head = f"--- {title}: {len(tokens):,} tokens, {int(np.count_nonzero(trained)):,} trained ---"
    return f"{head}\n{''.join(parts)}\n"


def _shortened(text: str) -> str:
    """Takes the middle out of a long text, and what a terminal would obey out of any."""
    excess = len(text) - _MAX_CHARACTERS
    if excess > 0:
        half = _MAX_CHARACTERS // 2
        text = f"{text[:half]}[... {excess:,} characters ...]{text[-half:]}"
    return columns.printable(text)
