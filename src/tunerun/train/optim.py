"""AdamW and the course of the learning rate.

Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization".
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

from tunerun.config.schema import TrainConfig

_EPSILON = 1e-8


def make_optimiser(
    parameters: Mapping[str, Parameter], config: TrainConfig, *, rate_factors: Mapping[str, float] | None = None
) -> torch.optim.AdamW:
    """Makes AdamW over the trainable parameters; vectors (biases, norms) are not decayed.

    Args:
        parameters: Trainable parameters by name.
        config: Betas and weight decay; the rate is set before each step.
        rate_factors: Factor of the learning rate by parameter; 1 for those not named.
    """
    factors = {} if rate_factors is None else rate_factors
    groups: dict[tuple[bool, float], list[Parameter]] = {}
    for name, parameter in parameters.items():
        factor = factors.get(name, 1.0)
        groups.setdefault((parameter.ndim >= 2, factor), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "weight_decay": config.weight_decay if decayed else 0.0, "rate_factor": factor}
            for (decayed, factor), members in groups.items()
        ],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=_EPSILON,
        fused=True,
    )


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Returns the learning rate of a step.

    It rises in a line over the warm-up, whose last step has the peak, and then follows the schedule.

    Args:
        step: Number of the step, from 0.
        total_steps: Steps of the whole training.
        config: Peak, warm-up, schedule and end.
    """
    warmup_steps = math.ceil(config.warmup_fraction * total_steps)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if config.schedule == "constant":
        remaining = 1.0
    elif config.schedule == "linear":
        remaining = 1.0 - progress
    else:
        remaining = 0.5 * (1.0 + math.cos(math.pi * progress))
    end = config.min_learning_rate_fraction
    return config.learning_rate * (end + (1.0 - end) * remaining)


def state_tensors(optimiser: torch.optim.AdamW, parameters: Mapping[str, Parameter]) -> dict[str, Tensor]:
    """Returns the optimiser's state as named tensors (`<parameter>|exp_avg`, ...)."""
    return {
        f"{name}|{key}": value
        for name, parameter in parameters.items()
        if parameter in optimiser.state
        for key, value in optimiser.state[parameter].items()
    }


def restore_state(
    optimiser: torch.optim.AdamW, parameters: Mapping[str, Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Gives an optimiser the state that `state_tensors` returned."""
    for key, tensor in tensors.items():
        name, _, part = key.rpartition("|")
        optimiser.state[parameters[name]][part] = tensor.to(parameters[name].device, copy=True)
