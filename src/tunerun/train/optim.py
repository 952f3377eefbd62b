"""Optimisers, their state as tensors and numbers, and the course of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from tunerun.config.schema import BITSANDBYTES_OPTIMIZERS, TrainConfig
from tunerun.errors import require
from tunerun.train.lion import Lion

Numbers = Mapping[str, int | float]

_EPSILON = 1e-8
_MUON_MOMENTUM = 0.95
_BITSANDBYTES_CLASSES = {
    "adamw_8bit": "AdamW8bit",
    "paged_adamw": "PagedAdamW",
    "paged_adamw_8bit": "PagedAdamW8bit",
}


def make_optimisers(
    parameters: Mapping[str, Parameter],
    config: TrainConfig,
    *,
    embeddings: Collection[str] = (),
    rate_factors: Mapping[str, float] | None = None,
) -> tuple[Optimizer, ...]:
    """Makes what moves the trainable parameters; vectors (biases, norms) are not decayed.

    Every kind takes `train.learning_rate` as AdamW does: Adafactor without its relative step, Muon with its step scaled
    to AdamW's usual size (Liu et al. 2025, "Muon is Scalable for LLM Training", arXiv 2502.16982, equation 4).

    Args:
        parameters: Trainable parameters by name.
        config: Kind, betas and weight decay; the rate is set before each step.
        embeddings: Names of the parameters of embeddings and output layer, which Muon leaves to AdamW.
        rate_factors: Factor of the learning rate by parameter; 1 for those not named.

    Returns:
        One optimiser; with Muon, another one for what AdamW moves.

    Raises:
        MissingExtra: bitsandbytes is needed and not installed.
    """
    factors = {} if rate_factors is None else rate_factors
    if config.optimizer == "muon":
        inner = {name for name, value in parameters.items() if value.ndim == 2 and name not in embeddings}
        chosen = {name: value for name, value in parameters.items() if name in inner}
        rest = {name: value for name, value in parameters.items() if name not in inner}
        made = [_make("muon", chosen, config, factors)] if chosen else []
        return (*made, *([_make("adamw", rest, config, factors)] if rest else []))
    return (_make(config.optimizer, parameters, config, factors),)


def skips_on_device(optimisers: Sequence[Optimizer]) -> bool:
    """Says whether `apply` can leave the weights alone by a flag that only the device knows."""
    return all(isinstance(optimiser, torch.optim.AdamW) and optimiser.defaults["fused"] for optimiser in optimisers)


def apply(optimisers: Sequence[Optimizer], rate: float, *, skip: Tensor | None = None) -> None:
    """Moves the weights by their gradients at a learning rate, and drops the gradients.

    Args:
        optimisers: Made by `make_optimisers`.
        rate: Learning rate.
        skip: Scalar on the device: where it is true, weights and state stay as they are; None moves them.
    """
    set_rate(optimisers, rate)
    for optimiser in optimisers:
        if skip is not None:
            # What torch's GradScaler sets: fused optimisers read it on the device.
            vars(optimiser)["found_inf"] = skip.float()
        optimiser.step()
    drop_gradients(optimisers)


def set_rate(optimisers: Sequence[Optimizer], rate: float) -> None:
    """Sets the learning rate of the next step."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate * group["rate_factor"]


def drop_gradients(optimisers: Sequence[Optimizer]) -> None:
    """Forgets the gradients."""
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Returns the learning rate of a step.

    It rises in a line over the warm-up, whose last step has the peak, and then follows the schedule. `wsd` falls as
    1 - sqrt(x) (Haegele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations",
    arXiv 2405.18392, section 3).

    Args:
        step: Number of the step, from 0.
        total_steps: Steps of the whole training.
        config: Peak, warm-up, schedule and end.
    """
    fraction_steps = math.ceil(config.warmup_fraction * total_steps)
    warmup_steps = fraction_steps if config.warmup_steps is None else config.warmup_steps
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "linear":
        remaining = 1.0 - progress
    elif config.schedule == "wsd":
        decay_steps = math.ceil(config.decay_fraction * total_steps)
        fallen = max(0, step - (total_steps - decay_steps)) / max(1, decay_steps)
        remaining = 1.0 - math.sqrt(fallen)
    else:
        remaining = 0.5 * (1.0 + math.cos(math.pi * progress))
    end = config.min_learning_rate_fraction
    return config.learning_rate * (end + (1.0 - end) * remaining)


def state_of(
    optimisers: Sequence[Optimizer], parameters: Mapping[str, Parameter]
) -> tuple[dict[str, Tensor], dict[str, int | float]]:
    """Returns the state of optimisers as tensors and numbers, named `<parameter>|exp_avg` and the like."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, int | float] = {}
    seen: set[int] = set()
    for key, value in _entries(optimisers, parameters):
        if isinstance(value, Tensor):
            # Safetensors refuses memory that two names share, as tables of 8-bit values do.
            tensors[key] = value.detach().clone() if value.data_ptr() in seen else value.detach()
            seen.add(value.data_ptr())
        else:
            numbers[key] = value
    return tensors, numbers


def restore_state(
    optimisers: Sequence[Optimizer],
    parameters: Mapping[str, Parameter],
    tensors: Mapping[str, Tensor],
    numbers: Numbers,
) -> None:
    """Gives optimisers the state that `state_of` returned."""
    holders = {name: optimiser for optimiser in optimisers for name in _names(optimiser, parameters)}
    for key, value in {**tensors, **numbers}.items():
        name, _, part = key.rpartition("|")
        state = holders[name].state[parameters[name]]
        if not isinstance(value, Tensor):
            state[part] = value
        elif part in state and isinstance(state[part], Tensor):
            # In place: paged memory stays paged.
            state[part].copy_(value)
        else:
            state[part] = value.to(parameters[name].device, copy=True)


def _make(
    kind: str, parameters: Mapping[str, Parameter], config: TrainConfig, factors: Mapping[str, float]
) -> Optimizer:
    groups = _groups(parameters, config.weight_decay, factors)
    rate, betas = config.learning_rate, (config.adam_beta1, config.adam_beta2)
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=_EPSILON, fused=True)
    if kind in BITSANDBYTES_OPTIMIZERS:
        return _from_bitsandbytes(kind, groups, rate, betas)
    if kind == "lion":
        return Lion(groups, lr=rate)
    if kind == "muon":
        return torch.optim.Muon(groups, lr=rate, momentum=_MUON_MOMENTUM, adjust_lr_fn="match_rms_adamw")
    assert kind == "adafactor", kind
    from transformers.optimization import Adafactor

    return Adafactor(groups, lr=rate, scale_parameter=False, relative_step=False)  # type: ignore[no-any-return]


def _groups(
    parameters: Mapping[str, Parameter], weight_decay: float, factors: Mapping[str, float]
) -> list[dict[str, Any]]:
    found: dict[tuple[float, float], list[Parameter]] = {}
    for name, parameter in parameters.items():
        decay = weight_decay if parameter.ndim >= 2 else 0.0
        factor = factors.get(name, 1.0)
        found.setdefault((decay, factor), []).append(parameter)
    return [
        {"params": members, "weight_decay": decay, "rate_factor": factor} for (decay, factor), members in found.items()
    ]


def _from_bitsandbytes(kind: str, groups: list[dict[str, Any]], rate: float, betas: tuple[float, float]) -> Optimizer:
    library: Any = require("bitsandbytes", "quant")
    made = vars(library.optim)[_BITSANDBYTES_CLASSES[kind]](groups, lr=rate, betas=betas, eps=_EPSILON)
    for group_index, group in enumerate(made.param_groups):
        for index, parameter in enumerate(group["params"]):
            # At once rather than at the first step, so that a restored state fills the library's own (paged) memory.
            made.init_state(group, parameter, group_index, index)
    optimiser: Optimizer = made
    return optimiser


def _entries(optimisers: Sequence[Optimizer], parameters: Mapping[str, Parameter]) -> list[tuple[str, Any]]:
    return [
        (f"{name}|{part}", value)
        for optimiser in optimisers
        for name in _names(optimiser, parameters)
        if parameters[name] in optimiser.state
        for part, value in optimiser.state[parameters[name]].items()
    ]


def _names(optimiser: Optimizer, parameters: Mapping[str, Parameter]) -> list[str]:
    moved = {id(parameter) for group in optimiser.param_groups for parameter in group["params"]}
    return [name for name, parameter in parameters.items() if id(parameter) in moved]
