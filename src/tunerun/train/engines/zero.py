"""Optimiser state, gradients and parameters shared out by DeepSpeed's ZeRO.

DeepSpeed is driven by itself: accelerate's wrapper moves the weights within the backward pass, and a gradient that is
not finite has to be noticed before. Our own optimiser moves the parts that DeepSpeed cuts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from tunerun.errors import require
from tunerun.train import optim
from tunerun.train.engines.engine import Body, Parts, State, collected, share, spoilt, trainable

T = TypeVar("T")

_STEP = "step"


class Zero:
    """See `Engine`."""

    moves_on_device = False

    def __init__(self, parts: Parts) -> None:
        deepspeed: Any = require("deepspeed", "deepspeed")
        self._deepspeed, self._network, self._ranks = deepspeed, parts.network, parts.ranks
        self.parameters = trainable(parts.network)
        rounded = _rounded(self.parameters) if parts.placement.precision == "bf16" else {}
        (self._optimiser,) = parts.optimisers(self.parameters)
        if parts.placement.device == "cpu":
            _do_without_shared_memory(deepspeed)
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        if parts.placement.strategy == "zero3":
            _share_out(deepspeed, parts)
        self._engine, *_ = deepspeed.initialize(
            model=Body(parts.network, parts.placement), optimizer=self._optimiser, config=dict(parts.deepspeed)
        )
        self._zero: Any = self._engine.optimizer
        self.assign(rounded)

    @torch.no_grad()
    def run(self, function: Callable[[Any], T]) -> T:
        """See `Engine`."""
        found: T = self._engine(function)
        return found

    def learn(self, function: Callable[[Any], tuple[Tensor, T]], *, last: bool) -> tuple[Tensor, T]:  # noqa: ARG002
        """See `Engine`."""
        loss, rest = self._engine(function)
        # DeepSpeed takes the mean of the ranks.
        self._engine.backward(spoilt(loss * self._ranks.world), scale_wrt_gas=False)
        return loss.detach(), rest

    def move(self, rate: float) -> Tensor:
        """See `Engine`."""
        optim.set_rate([self._optimiser], rate)
        # Leaves the weights alone and drops the gradients when their norm is not finite.
        self._engine.step()
        return torch.tensor(float("nan") if self._zero.overflow else float(self._engine.get_global_grad_norm()))

    def weights(self, *, trainable: bool) -> dict[str, Tensor]:
        """See `Engine`."""
        state = self.parameters if trainable else self._network.state_dict(keep_vars=True)
        return collected(state, self._whole, self._ranks)

    def _whole(self, value: Tensor) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param

        if value.requires_grad:
            together: Tensor = safe_get_full_fp32_param(value)
            return together.cpu()
        with self._deepspeed.zero.GatheredParameters([value], enabled=hasattr(value, "ds_id")):
            return value.detach().cpu().clone()

    def assign(self, weights: Mapping[str, Tensor]) -> None:
        """See `Engine`."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        for name, weight in weights.items():
            parameter: Any = self.parameters[name]
            value = weight.to(parameter.device, torch.float32)
            # What the optimiser moves, and what is computed with until it next moves.
            if hasattr(parameter, "ds_id"):
                part = self._part(parameter, value)
                safe_set_local_fp32_param(parameter, part)
                parameter.ds_tensor.data.copy_(part)
            else:
                safe_set_full_fp32_param(parameter, value)
            # Small ones stay whole between steps under ZeRO-3, too.
            if parameter.numel() == value.numel():
                parameter.data.copy_(value)

    def state(self) -> State:
        """See `Engine`."""
        from deepspeed.utils import safe_get_full_optimizer_state

        flat: dict[str, Tensor] = next(iter(self._optimiser.state.values()), {})
        mine, tensors = set(share(self.parameters, self._ranks)), dict[str, Tensor]()
        for name, parameter in self.parameters.items():
            for part in sorted(part for part in flat if part != _STEP):
                whole = safe_get_full_optimizer_state(parameter, part)
                if name in mine:
                    tensors[f"{name}|{part}"] = whole.cpu()
            if _STEP in flat and name in mine:
                tensors[f"{name}|{_STEP}"] = flat[_STEP].detach().cpu().clone()
        return State(tensors=tensors)

    def restore(self, state: State) -> None:
        """See `Engine`."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if not state.tensors:
            return
        parts = sorted({key.rpartition("|")[2] for key in state.tensors})
        step = next((value for key, value in state.tensors.items() if key.endswith(f"|{_STEP}")), None)
        for flat in self._flat_parts():
            entry = self._optimiser.state[flat]
            if step is not None:
                entry[_STEP] = step.clone()
            # Those that are there are written in place: DeepSpeed knows the parameters' parts of them.
            entry |= {part: torch.zeros_like(flat) for part in parts if part not in entry}
        if not hasattr(self._zero, "fp32_partitioned_groups_flat"):
            self._zero._lazy_init_hp_params_optimizer_state()
        for key, value in state.tensors.items():
            name, _, part = key.rpartition("|")
            if part != _STEP:
                parameter, whole = self.parameters[name], value.to(self.parameters[name].device)
                if hasattr(parameter, "ds_id"):
                    safe_set_local_optimizer_state(parameter, self._part(parameter, whole), part)
                else:
                    safe_set_full_optimizer_state(parameter, whole, part)

    def _part(self, parameter: Any, value: Tensor) -> Tensor:
        """Returns this rank's part of a whole value under ZeRO-3, the last one filled up with zeros.

        DeepSpeed's own functions for whole values read past the end of one that the ranks cannot share evenly.
        """
        size = parameter.ds_tensor.numel()
        missing = size * self._ranks.world - value.numel()
        return torch.nn.functional.pad(value.flatten(), (0, missing)).narrow(0, size * self._ranks.rank, size)

    def _flat_parts(self) -> list[Tensor]:
        """Returns what the optimiser moves on this rank: one long tensor for each group of parameters."""
        zero = self._zero
        found: list[Tensor] = (
            zero.fp32_partitioned_groups_flat
            if hasattr(zero, "fp32_partitioned_groups_flat")
            else zero.single_partition_of_fp32_groups
        )
        return found


def _do_without_shared_memory(deepspeed: Any) -> None:
    """Keeps DeepSpeed from compiling its CPU collectives, which takes a compiler and waits for one that was killed."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


@torch.no_grad()
def _share_out(deepspeed: Any, parts: Parts) -> None:
    """Cuts parameters layer by layer; `initialize` would first put all of them on the device, in the format trained in.

    What DeepSpeed is given has memory of its own: it writes the first rank's values into it, and a mapped page that is
    written stays in memory for as long as any weight of its file does.
    """
    placement = parts.placement
    half = placement.precision == "bf16"
    for unit in (*parts.network.get_decoder().layers, parts.network):
        if not half:
            parts.settle(unit)
        for parameter in unit.parameters():
            if not hasattr(parameter, "ds_id"):
                wanted = torch.bfloat16 if half and parameter.is_floating_point() else parameter.dtype
                parameter.data = parameter.data.to(placement.device, wanted, copy=True)
        deepspeed.zero.Init(module=unit, config_dict_or_path=dict(parts.deepspeed))
    # Those are left where they are when DeepSpeed finds parameters already cut.
    for buffer in parts.network.buffers():
        buffer.data = buffer.data.to(placement.device)


def _rounded(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights that bf16 cannot hold; DeepSpeed would make its fp32 copies from rounded ones.

    They are not copied: DeepSpeed gives a parameter other memory when it changes the number format.
    """
    return {
        name: value.detach()
        for name, value in parameters.items()
        if not torch.equal(value.detach().bfloat16().float(), value.detach().float())
    }
