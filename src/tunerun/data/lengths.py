"""What happens to samples longer than a row may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tunerun.data.encode import Sample
from tunerun.data.rows import RowFault

Policy = Literal["truncate_prompt", "truncate", "drop", "split", "fail"]
Cut = Literal["", "prompt", "answer"]
"""What was shortened; an answer only where no prompt is left to cut."""

# Of each prompt text this many tokens stay, so that role names and the ends of a turn survive.
_KEPT_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Fitted:
    """What the policy for long samples makes of one."""

    samples: tuple[Sample, ...]
    """None where the policy drops it, several when it splits it."""
    cut: Cut


def fit(sample: Sample, max_length: int, policy: Policy, added: npt.NDArray[Any]) -> Fitted:
    """Makes a sample fit into a row.

    Args:
        sample: Tokens and trained flags.
        max_length: Longest row, in tokens.
        policy: `truncate_prompt` shortens the longest untrained texts in their middle, and the end of the sample only
            where that is not enough; `truncate` cuts the end; `drop` returns no sample; `split` cuts it into samples of
            `max_length`, of which those with something to learn are kept.
        added: Ids of the tokenizer's added tokens, which are never cut out of a prompt.

    Raises:
        RowFault: The sample is too long and the policy is `fail`.
    """
    tokens, trained = sample
    if len(tokens) <= max_length:
        return Fitted((sample,), "")
    if policy == "fail":
        raise RowFault("too-long", f"the row has {len(tokens)} tokens; data.max_length is {max_length}.")
    if policy == "drop":
        return Fitted((), "")
    if policy == "split":
        parts = [slice(start, start + max_length) for start in range(0, len(tokens), max_length)]
        return Fitted(tuple((tokens[part], trained[part]) for part in parts if trained[part].any()), "")
    if policy == "truncate_prompt":
        keep = _shorten(tokens, trained, len(tokens) - max_length, added)
        tokens, trained = tokens[keep], trained[keep]
    answer_cut = bool(trained[max_length:].any())
    return Fitted(((tokens[:max_length], trained[:max_length]),), "answer" if answer_cut else "prompt")


def _shorten(tokens: npt.NDArray[Any], trained: npt.NDArray[Any], excess: int, added: npt.NDArray[Any]) -> Any:
    """Returns which tokens stay, shape [tokens], when up to `excess` prompt tokens are taken out."""
    free = np.concatenate([[0], (trained == 0) & ~np.isin(tokens, added), [0]]).astype(np.int8)
    edges = np.flatnonzero(np.diff(free))
    keep = np.ones(len(tokens), np.bool_)
    runs = sorted(zip(edges[::2], edges[1::2], strict=True), key=lambda run: (run[0] - run[1], run[0]))
    for start, end in runs:
        count = int(min(excess, max(0, end - start - _KEPT_TOKENS)))
        middle = start + (end - start - count) // 2
        keep[middle : middle + count] = False
        excess -= count
    return keep
