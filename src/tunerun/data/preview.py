"""Shows samples as the model will see them: special tokens visible, trained text marked."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from tunerun.chat.tokenizer import Tokenizer
from tunerun.formats.pairs import CHOSEN, REJECTED, PairStore
from tunerun.formats.tokens import TokenStore

_SAMPLES = 3
_PLAIN = (">>>", "<<<")
_COLOUR = ("\x1b[32m", "\x1b[0m")


def preview(store: TokenStore | PairStore, tokenizer: Tokenizer, *, colour: bool = False) -> str:
    """Renders the first samples of a store.

    Args:
        store: A token store, or one of pairs, whose sides are shown one after the other.
        tokenizer: The one that made it.
        colour: Whether trained text is green, for a terminal, instead of between `>>>` and `<<<`.
    """
    if isinstance(store, PairStore):
        sides = {CHOSEN: store.chosen, REJECTED: store.rejected}
        return "\n".join(f"=== {name} ===\n{preview(side, tokenizer, colour=colour)}" for name, side in sides.items())
    opening, closing = _COLOUR if colour else _PLAIN
    shown: list[str] = []
    for row in range(len(store)):
        tokens, trained, segments = store.row(row)
        for number in np.unique(segments):
            if len(shown) == _SAMPLES:
                break
            inside = segments == number
            text = _marked(tokens[inside], trained[inside], tokenizer, opening, closing)
            head = f"--- sample {number}: {inside.sum()} tokens, {trained[inside].sum()} trained ---"
            shown.append(f"{head}\n{text}\n")
    return "\n".join(shown)


def _marked(
    tokens: npt.NDArray[Any], trained: npt.NDArray[Any], tokenizer: Tokenizer, opening: str, closing: str
) -> str:
    starts = [0, *(np.flatnonzero(np.diff(trained.astype(np.int8))) + 1).tolist(), len(tokens)]
    parts: list[str] = []
    for start, end in pairwise(starts):
        text = tokenizer.backend.decode(tokens[start:end].tolist(), skip_special_tokens=False)
        parts.append(f"{opening}{text}{closing}" if trained[start] else text)
    return "".join(parts)
