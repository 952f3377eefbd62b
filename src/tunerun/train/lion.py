"""Lion: the sign of an interpolated momentum.

Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms" (arXiv 2302.06675), algorithm 2. Its step has the size
of the learning rate in every place, so that a third to a tenth of AdamW's rate suits it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# The paper's choice for all of its experiments but language modelling from scratch.
BETAS = (0.9, 0.99)


class Lion(Optimizer):
    """Keeps one number for each weight, in the weight's own format."""

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float] = BETAS) -> None:
        """Takes parameter groups, each with a `weight_decay`."""
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Moves the weights that have a gradient; takes no closure."""
        assert closure is None, "Lion computes no loss"
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                momenta = [self._momentum(parameter) for parameter in parameters]
                _move(parameters, [parameter.grad for parameter in parameters], momenta, group)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"]
        return momentum


def _move(parameters: list[Tensor], gradients: list[Tensor], momenta: list[Tensor], group: dict[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    directions = torch._foreach_lerp(momenta, gradients, 1.0 - beta1)
    torch._foreach_sign_(directions)
    torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
    torch._foreach_add_(parameters, directions, alpha=-group["lr"])
    torch._foreach_lerp_(momenta, gradients, 1.0 - beta2)
