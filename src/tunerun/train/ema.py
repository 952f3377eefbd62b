"""An exponential moving average of the trained weights, which is published in their place.

The decay of early steps is lower, (1 + t) / (10 + t) at step t, so that the average forgets the weights training began
with (as TensorFlow's ExponentialMovingAverage does with `num_updates`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter


@dataclass(frozen=True, slots=True)
class Average:
    """Averaged weights."""

    decay: float
    """Share of the average that a late step keeps."""
    weights: dict[str, Tensor]
    """By name of the parameter."""


def start(parameters: Mapping[str, Parameter], decay: float) -> Average:
    """Returns an average that begins with the parameters as they are."""
    return Average(decay, {name: parameter.detach().clone() for name, parameter in parameters.items()})


@torch.no_grad()
def update(average: Average, parameters: Mapping[str, Parameter], step: int) -> None:
    """Adds the parameters after a step, counted from 0, to the average."""
    decay = min(average.decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.weights.values()), [parameters[name] for name in average.weights], 1.0 - decay)


@torch.no_grad()
def restore(average: Average | None, weights: Mapping[str, Tensor]) -> None:
    """Gives an average the weights that it had; does nothing without an average."""
    if average is None:
        return
    for name, weight in average.weights.items():
        weight.copy_(weights[name])


@contextmanager
def applied(average: Average | None, parameters: Mapping[str, Parameter]) -> Iterator[None]:
    """Lets the parameters have the averaged values within the block; does nothing without an average."""
    if average is None:
        yield
        return
    before = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = average.weights[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = before[name]
