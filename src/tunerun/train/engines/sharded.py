"""Parameters, gradients and optimiser state shared out by torch's fully_shard (FSDP2).

Each layer is a unit whose parameters come together for the time of its computation; what is left (embeddings, last
norm, output layer) is the root's. A parameter is cut along its first dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tunerun.train import optim
from tunerun.train.engines.engine import Body, Parts, State, collected, share, spoilt, trainable

T = TypeVar("T")


class Sharded:
    """See `Engine`."""

    moves_on_device = False

    def __init__(self, parts: Parts) -> None:
        placement = parts.placement
        mesh = init_device_mesh(placement.device, (parts.ranks.world,))
        # Without a GPU all memory is the host's.
        offloads = placement.offload and placement.device == "cuda"
        half = torch.bfloat16 if placement.precision == "bf16" else None
        settings: dict[str, Any] = {
            "mesh": mesh,
            # Gradients are added up in float32: what is trained is.
            "mp_policy": MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32),
            "offload_policy": CPUOffloadPolicy() if offloads else OffloadPolicy(),
        }
        self._network, self._ranks, self._limit = parts.network, parts.ranks, parts.max_grad_norm
        self._body: Any = Body(parts.network, placement)
        for unit in (*parts.network.get_decoder().layers, self._body):
            parts.settle(unit)
            fully_shard(unit, **settings)
        self.parameters = trainable(parts.network)
        self._optimisers = parts.optimisers(self.parameters)

    @torch.no_grad()
    def run(self, function: Callable[[Any], T]) -> T:
        """See `Engine`."""
        found: T = self._body(function)
        # The root's parameters stay together until a backward pass, which does not come.
        self._body.reshard()
        return found

    def learn(self, function: Callable[[Any], tuple[Tensor, T]], *, last: bool) -> tuple[Tensor, T]:  # noqa: ARG002
        """See `Engine`."""
        # Gradients are cut after each micro-batch: whole ones would not fit where parameters do not.
        loss, rest = self._body(function)
        # fully_shard takes the mean of the ranks.
        spoilt(loss * self._ranks.world).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), rest

    def move(self, rate: float) -> Tensor:
        """See `Engine`."""
        limit = math.inf if self._limit is None else self._limit
        found = torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit)
        assert isinstance(found, DTensor), "all trainable parameters are sharded"
        norm = found.full_tensor()
        if math.isfinite(norm):
            optim.apply(self._optimisers, rate)
        else:
            optim.drop_gradients(self._optimisers)
        return norm

    def weights(self, *, trainable: bool) -> dict[str, Tensor]:
        """See `Engine`."""
        state = self.parameters if trainable else self._network.state_dict(keep_vars=True)
        return collected(state, _whole, self._ranks)

    @torch.no_grad()
    def assign(self, weights: Mapping[str, Tensor]) -> None:
        """See `Engine`."""
        for name, weight in weights.items():
            parameter = self.parameters[name]
            assert isinstance(parameter, DTensor), name
            parameter.copy_(_part(weight, parameter))

    def state(self) -> State:
        """See `Engine`."""
        tensors, numbers = optim.state_of(self._optimisers, self.parameters)
        mine = set(share(self.parameters, self._ranks))
        kept: dict[str, Tensor] = {}
        for key, value in tensors.items():
            whole = _whole(value)
            if key.rpartition("|")[0] in mine:
                kept[key] = whole
        return State(tensors=kept, numbers=numbers)

    def restore(self, state: State) -> None:
        """See `Engine`."""
        parts: dict[str, Tensor] = {}
        for key, value in state.tensors.items():
            parameter = self.parameters[key.rpartition("|")[0]]
            assert isinstance(parameter, DTensor), key
            parts[key] = _part(value, parameter) if value.shape == parameter.shape else value
        optim.restore_state(self._optimisers, self.parameters, parts, state.numbers)


def _whole(value: Tensor) -> Tensor:
    """Brings a tensor together, on the host."""
    found = value.detach()
    return (found.full_tensor() if isinstance(found, DTensor) else found).cpu()


def _part(value: Tensor, like: DTensor) -> DTensor:
    """Returns this rank's part of a tensor that every rank has whole."""
    device = like.to_local().device
    return distribute_tensor(value.to(device), like.device_mesh, like.placements, src_data_rank=None)
