"""Stops training when its numbers are no longer numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable

from tunerun.errors import StageError

_SHOWN_SAMPLES = 20


def check_finite(value: float, what: str, *, step: int, samples: Iterable[int]) -> None:
    """Raises unless a number is finite, before it can reach the weights.

    Args:
        value: Loss or gradient norm.
        what: `loss` or `gradient norm`.
        step: Number of the step, from 1.
        samples: Sample numbers it was computed from.

    Raises:
        StageError: It is NaN or infinite; names step and samples.
    """
    if math.isfinite(value):
        return
    raise StageError(
        f"step {step}: the {what} is {value}; the weights were not changed by it. It was computed from "
        f"{_names(samples)} of the data (data/preview.txt shows how samples are numbered). "
        "Lower train.learning_rate, or look at these samples."
    )


def check_trained(trained_tokens: int, *, step: int, samples: Iterable[int]) -> None:
    """Raises when a step has nothing to learn.

    Raises:
        StageError: No token of the global batch is a target.
    """
    if trained_tokens == 0:
        raise StageError(f"step {step}: no token of {_names(samples)} is trained on. Look at data/report.json.")


def _names(samples: Iterable[int]) -> str:
    numbers = sorted(set(samples))
    more = f" and {len(numbers) - _SHOWN_SAMPLES} more" if len(numbers) > _SHOWN_SAMPLES else ""
    return f"samples {', '.join(map(str, numbers[:_SHOWN_SAMPLES]))}{more}"
