"""Memory that is there for a few rows at a time only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from tunerun.train.objectives import OBJECTIVES

# More than any machine has: the allocator itself refuses it.
_TOO_MUCH_BYTES = 1 << 58


def allocate_too_much() -> None:
    """Has torch's allocator say that there is no memory."""
    torch.empty(_TOO_MUCH_BYTES, dtype=torch.uint8)


@contextmanager
def memory_for(rows: int, *, kind: str = "sft", when: Callable[[Any], bool] = lambda _: True) -> Iterator[None]:
    """Has memory for micro-batches of `rows` only, within the block: the second one of a step that is larger fails.

    Args:
        rows: That fit.
        kind: Of the objective.
        when: Takes the network; memory is short when it says so.
    """
    whole = OBJECTIVES[kind]

    def loss(network: Any, batch: Any, totals: Any, setting: Any) -> Any:
        outcome = whole.loss(network, batch, totals, setting)
        begun = any(parameter.grad is not None for parameter in network.parameters())
        if batch.rows > rows and (begun or not network.training) and when(network):
            allocate_too_much()
        return outcome

    def forward(function: Any) -> Any:
        def computed(network: Any, examples: Any, part: Any, device: str) -> Any:
            found = function(network, examples, part, device)
            if len(part) > rows:
                allocate_too_much()
            return found

        return None if function is None else computed

    OBJECTIVES[kind] = replace(whole, loss=loss, reference=forward(whole.reference), kl=forward(whole.kl))
    try:
        yield
    finally:
        OBJECTIVES[kind] = whole
