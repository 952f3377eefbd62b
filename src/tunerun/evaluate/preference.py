"""How well a model tells better answers from worse ones: pairs, or rows with a label each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunerun.formats.pairs import PairStore
from tunerun.formats.tokens import TokenStore
from tunerun.models.score import Answers, answers


@dataclass(frozen=True, kw_only=True, slots=True)
class Preference:
    """What a model makes of better and of worse answers."""

    better: Answers
    worse: Answers
    paired: bool
    """Whether row i of both answers the same prompt."""


def measure(
    network: Any,
    store: PairStore | TokenStore,
    rows: int,
    *,
    batch_size: int,
    device: str,
    advance: Callable[[int], None],
) -> Preference:
    """Measures the first rows of a store of pairs or of labelled rows.

    Args:
        network: A causal transformers model that uses `segment_attention`.
        store: Pairs, or rows with labels.
        rows: Rows or pairs to measure.
        batch_size: Rows computed at a time.
        device: Where the network is.
        advance: Told the number of rows, or of sides of pairs, after each batch.
    """
    if isinstance(store, PairStore):
        sides, numbers = (store.chosen, store.rejected), [list(range(rows))] * 2
    else:
        assert store.labels is not None, "rows without labels are not compared"
        sides, labels = (store, store), store.labels[:rows]
        numbers = [np.flatnonzero(labels == label).tolist() for label in (1, 0)]
    better, worse = (
        answers(network, side, chosen, batch_size=batch_size, device=device, advance=advance)
        for side, chosen in zip(sides, numbers, strict=True)
    )
    return Preference(better=better, worse=worse, paired=isinstance(store, PairStore))


def compare(now: Preference, before: Preference | None) -> dict[str, float | None]:
    """Turns log-probabilities into what is reported.

    Args:
        now: Of the model.
        before: Of the base model; None for the base model itself.

    Returns:
        `accuracy`: share of the pairs whose better answer has the higher mean log-probability of a token, and
        `margin`, the mean difference of these in nats. `reward_accuracy` and `reward_margin`: the same of what training
        changed, the log-probability of a whole answer over that under the base model. None where it cannot be told.
    """
    accuracy, margin = _compare(now.better.per_token, now.worse.per_token, paired=now.paired)
    reward_accuracy, reward_margin = None, None
    if before is not None:
        better, worse = now.better.log_probs - before.better.log_probs, now.worse.log_probs - before.worse.log_probs
        reward_accuracy, reward_margin = _compare(better, worse, paired=now.paired)
    return {
        "accuracy": accuracy,
        "margin": margin,
        "reward_accuracy": reward_accuracy,
        "reward_margin": reward_margin,
    }


def _compare(better: Any, worse: Any, *, paired: bool) -> tuple[float | None, float | None]:
    if not (len(better) and len(worse)):
        return None, None
    return (float((better > worse).mean()) if paired else None), float(better.mean() - worse.mean())
