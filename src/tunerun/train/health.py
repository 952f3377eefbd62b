"""Notices when the numbers of training are no longer numbers, or jump."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from tunerun.errors import StageError

SPIKE_WINDOW = 100
"""Losses that a loss is compared with."""
MOST_SKIPPED = 10
"""Steps in a row that may be skipped before training stops all the same."""

_SHOWN_SAMPLES = 20
# Half as long, training has not found its level; a lower bound or fewer deviations would be crossed by chance.
_SPIKE_AFTER = 20
_SPIKE_FACTOR = 2.0
_SPIKE_DEVIATIONS = 8.0


class NotFinite(StageError):  # noqa: N818 (a state, which a policy may let pass)
    """A loss or a gradient is NaN or infinite."""

    def __init__(self, value: float, what: str, *, step: int, samples: Iterable[int]) -> None:
        self.told = f"step {step}: the {what} is {value}. It was computed from {names(samples)} of the data"
        super().__init__(
            f"{self.told}. The weights were not changed by it (data/preview.txt shows how samples are numbered). "
            "Lower train.learning_rate, look at these samples, or let such steps pass: train.on_nonfinite=skip."
        )


def check_trained(trained_tokens: int, *, step: int, samples: Iterable[int]) -> None:
    """Raises when a step has nothing to learn.

    Raises:
        StageError: No token of the global batch is a target.
    """
    if trained_tokens == 0:
        raise StageError(f"step {step}: no token of {names(samples)} is trained on. Look at data/report.json.")


def is_spike(loss: float, before: Sequence[float]) -> bool:
    """Says whether a loss stands out from those of the steps before.

    Args:
        loss: Of the step just done.
        before: Of at most `SPIKE_WINDOW` steps before it.
    """
    if len(before) < _SPIKE_AFTER:
        return False
    mean = sum(before) / len(before)
    if loss <= _SPIKE_FACTOR * mean:
        return False
    variance = sum((value - mean) ** 2 for value in before) / len(before)
    return loss > mean + _SPIKE_DEVIATIONS * math.sqrt(variance)


def names(samples: Iterable[int]) -> str:
    """Returns samples as a message names them."""
    numbers = sorted(set(samples))
    more = f" and {len(numbers) - _SHOWN_SAMPLES} more" if len(numbers) > _SHOWN_SAMPLES else ""
    return f"samples {', '.join(map(str, numbers[:_SHOWN_SAMPLES]))}{more}"
