"""What an engine is to the training loop: how the processes of a training share the model and its gradients.

    single          one process
    ddp             each has the whole model; gradients are averaged (torch's DistributedDataParallel)
    zero1 zero2     optimiser state is shared out, with zero2 the gradients too (DeepSpeed)
    zero3           parameters too (DeepSpeed)
    fsdp2           as zero3, by torch's fully_shard

All take the same rows to the same losses and weights, up to the order of additions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from tunerun.plan.placement import Placement
from tunerun.train.ranks import Ranks

T = TypeVar("T")
Numbers = Mapping[str, int | float]
Settle = Callable[[nn.Module], None]
"""Gives the weights of a part of the network the number format that they are trained in."""


def settled(part: nn.Module) -> None:
    """Leaves weights as they are; a `Settle`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """What an optimiser knows besides the weights: whole tensors and numbers, named `<parameter>|exp_avg`."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """On the host."""
    numbers: Numbers = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What an engine is made of."""

    network: Any
    """The transformers model, adapter layers included, whole; where parameters are shared out, on the host, which may
    not have read them from their files yet."""
    optimisers: Callable[[Mapping[str, Parameter]], tuple[Optimizer, ...]]
    """Makes what moves the parameters, which an engine may have replaced."""
    placement: Placement
    ranks: Ranks
    max_grad_norm: float | None
    """Gradients are scaled down to this L2 norm; None leaves them as they are."""
    deepspeed: Mapping[str, Any]
    """DeepSpeed's config; empty for other strategies."""
    settle: Settle = settled
    """For a part of the network before its parameters are shared out, so that no process has to hold all of them."""


class Engine(Protocol):
    """The model in the hands of all ranks; each method has to be called by all of them together."""

    parameters: Mapping[str, Parameter]
    """Trainable parameters by name, as the network calls them; a rank may hold a part of each."""
    moves_on_device: bool
    """Whether `move` asks the device to move the weights and does not wait to see whether it did."""

    def run(self, function: Callable[[Any], T]) -> T:
        """Applies a function to the network without gradients, in the precision of the computation.

        Where parameters are shared out, all ranks have to run the same layers as often.

        Args:
            function: Returns a tensor, or tuples, lists or dicts of them.
        """

    def learn(self, function: Callable[[Any], tuple[Tensor, T]], *, last: bool) -> tuple[Tensor, T]:
        """Runs a function of the network and adds the gradients of its loss; one that is not finite makes them NaN.

        Args:
            function: Returns a scalar, this rank's part of a mean over all of them, and what else is to be returned.
            last: Whether the weights are moved next.

        Returns:
            What the function returned, the loss detached.
        """

    def move(self, rate: float) -> Tensor:
        """Clips the gradients, moves the weights at a learning rate and drops the gradients.

        Returns:
            The L2 norm of the gradients of all ranks before clipping, a scalar. When it is not finite, nothing was
            moved.
        """

    def weights(self, *, trainable: bool) -> dict[str, Tensor]:
        """Returns whole weights by name on the first rank, and nothing on the others.

        Args:
            trainable: Whether only trainable parameters are wanted, or all that the network's state has.
        """

    def assign(self, weights: Mapping[str, Tensor]) -> None:
        """Gives parameters whole weights; those not named stay as they are."""

    def state(self) -> State:
        """Returns the share of the optimiser's state that this rank is to write."""

    def restore(self, state: State) -> None:
        """Gives the optimiser a whole state."""


class Body(nn.Module):
    """The module that engines wrap: it runs any function of the network as its forward pass.

    Wrappers gather parameters and prepare for the backward pass around a call of the module they wrap. Losses here call
    parts of the network, the decoder and the output layer's weights say, so those calls have to happen inside.
    """

    def __init__(self, network: Any, placement: Placement) -> None:
        super().__init__()
        self.network = network
        self._placement = placement

    def forward(self, function: Callable[[Any], T]) -> T:
        """Applies a function to the network."""
        half = self._placement.precision == "bf16"
        with torch.autocast(self._placement.device, torch.bfloat16, enabled=half):
            return function(self.network)


def trainable(network: Any) -> dict[str, Parameter]:
    """Returns the parameters that are trained, by name."""
    return {name: value for name, value in network.named_parameters() if value.requires_grad}


def spoilt(loss: Tensor) -> Tensor:
    """Returns a loss whose gradients are NaN when it is not finite itself, and the same ones otherwise."""
    return loss * (1.0 + 0.0 * loss.detach())


def collected(state: Mapping[str, Tensor], whole: Callable[[Tensor], Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Brings weights together on the first rank, those with several names once.

    Args:
        state: This rank's parts, by name; the same object under each of its names.
        whole: Brings one together; all ranks call it.
        ranks: This process among those that train.
    """
    found: dict[int, Tensor] = {}
    for value in state.values():
        if id(value) not in found:
            together = whole(value)
            found[id(value)] = together if ranks.is_first else together.new_empty(0)
    return {name: found[id(value)] for name, value in state.items()} if ranks.is_first else {}


def share(names: Mapping[str, Any], ranks: Ranks) -> list[str]:
    """Returns the parameters whose state this rank writes."""
    return list(names)[ranks.rank :: ranks.world]
