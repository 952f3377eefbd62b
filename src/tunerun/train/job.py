"""All that stays the same while training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from tunerun.models.ask import Questions
from tunerun.plan.steps import TrainStep
from tunerun.train import ema
from tunerun.train.checkpoint import Checkpoint
from tunerun.train.engines import Engine
from tunerun.train.fitting import Fitting
from tunerun.train.objectives.objective import Examples, Objective, Setting
from tunerun.train.ranks import Ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is trained, on what."""

    step: TrainStep
    objective: Objective
    setting: Setting
    network: Any
    """The transformers model, adapter layers included; computed with through the engine."""
    engine: Engine
    trained_parameters: int
    """Number of trained weights, over all ranks."""
    ranks: Ranks
    fitting: Fitting
    """How much is computed at a time."""
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
    save_weights: Callable[[Path, Mapping[str, Tensor]], None]
    """Writes whole trained weights, by name, into a folder."""
    trainable_only: bool
    """Whether that takes the trained weights alone, or all of the network's."""
    reload: Callable[[Checkpoint], None]
    """Gives the parameters the weights of a checkpoint."""
    questions: Questions | None
    """Answered at each checkpoint."""
    imitated: tuple[Questions, list[str]] | None
    """Those of held-out rows and the answers they should have, when these are compared while training."""
    reads_late: bool = False
    """Whether the host looks at the numbers of a step while the device is at the next one."""

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """Trainable parameters by name."""
        return self.engine.parameters
