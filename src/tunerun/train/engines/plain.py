"""One process, or several that have the whole model each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tunerun.train import optim
from tunerun.train.engines.engine import Body, Parts, State, share, spoilt, trainable

T = TypeVar("T")

# torch clips by limit / (norm + this).
_CLIP_MARGIN = 1e-6


class Plain:
    """See `Engine`."""

    def __init__(self, parts: Parts) -> None:
        self.parameters = trainable(parts.network)
        self._network, self._ranks, self._limit = parts.network, parts.ranks, parts.max_grad_norm
        self._optimisers = parts.optimisers(self.parameters)
        alone = parts.placement.device == "cuda" and parts.ranks.world == 1
        self.moves_on_device = alone and optim.skips_on_device(self._optimisers)
        self._body: Any = Body(parts.network, parts.placement)
        if parts.ranks.world > 1:
            # Every rank has read what is frozen from the same files.
            frozen = [name for name, value in self._body.named_parameters() if not value.requires_grad]
            same = [*frozen, *(name for name, _ in self._body.named_buffers())]
            wrap: Any = DistributedDataParallel
            wrap._set_params_and_buffers_to_ignore_for_model(self._body, same)
            self._body = wrap(self._body)

    @torch.no_grad()
    def run(self, function: Callable[[Any], T]) -> T:
        """See `Engine`."""
        found: T = self._body(function)
        return found

    def learn(self, function: Callable[[Any], tuple[Tensor, T]], *, last: bool) -> tuple[Tensor, T]:
        """See `Engine`."""
        if self._ranks.world > 1:
            # It looks at this in the forward pass too.
            self._body.require_backward_grad_sync = last
        loss, rest = self._body(function)
        # DDP takes the mean of the ranks.
        spoilt(loss * self._ranks.world).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), rest

    def move(self, rate: float) -> Tensor:
        """See `Engine`."""
        norm = self._clipped()
        if self.moves_on_device:
            optim.apply(self._optimisers, rate, skip=~torch.isfinite(norm))
        elif math.isfinite(norm):
            optim.apply(self._optimisers, rate)
        else:
            optim.drop_gradients(self._optimisers)
        return norm

    def _clipped(self) -> Tensor:
        """Returns the norm of the gradients before they were clipped."""
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        # A GPU would have to be waited for; on a CPU, a pass over all gradients that multiplies by one is saved.
        if self._limit is not None and not (norm.device.type == "cpu" and norm + _CLIP_MARGIN <= self._limit):
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self._limit, norm)
        return norm

    def weights(self, *, trainable: bool) -> dict[str, Tensor]:
        """See `Engine`."""
        if not self._ranks.is_first:
            return {}
        if trainable:
            return {name: parameter.detach() for name, parameter in self.parameters.items()}
        return dict(self._network.state_dict())

    @torch.no_grad()
    def assign(self, weights: Mapping[str, Tensor]) -> None:
        """See `Engine`."""
        for name, weight in weights.items():
            self.parameters[name].copy_(weight)

    def state(self) -> State:
        """See `Engine`."""
        mine = {name: self.parameters[name] for name in share(self.parameters, self._ranks)}
        tensors, numbers = optim.state_of(self._optimisers, mine)
        return State(tensors=tensors, numbers=numbers)

    def restore(self, state: State) -> None:
        """See `Engine`."""
        optim.restore_state(self._optimisers, self.parameters, state.tensors, state.numbers)
