"""All that stays the same while training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import Parameter

from tunerun.models.ask import Questions
from tunerun.plan.steps import Placement, TrainStep
from tunerun.train import ema
from tunerun.train.checkpoint import Checkpoint
from tunerun.train.objectives.objective import Examples, Objective, Setting


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is trained, on what."""

    step: TrainStep
    objective: Objective
    setting: Setting
    network: Any
    """The transformers model, adapter layers included."""
    parameters: Mapping[str, Parameter]
    """Trainable parameters by name."""
    optimisers: Sequence[torch.optim.Optimizer]
    average: ema.Average | None
    """Of the parameters, when it is published in their place."""
    examples: Examples
    eval_examples: Examples | None
    """Held-out rows, when they are measured while training."""
    total_steps: int
    checkpoints: Path
    """Folder of the run's checkpoints."""
    identity: Mapping[str, Any]
    """What checkpoints belong to."""
    save_weights: Callable[[Path], None]
    """Writes the trained weights into a folder."""
    reload: Callable[[Checkpoint], None]
    """Gives the parameters the weights of a checkpoint."""
    questions: Questions | None
    """Answered at each checkpoint."""


def precision_of(placement: Placement) -> AbstractContextManager[Any]:
    """Returns the number format that a forward pass computes in."""
    return torch.autocast(placement.device, torch.bfloat16, enabled=placement.precision == "bf16")
