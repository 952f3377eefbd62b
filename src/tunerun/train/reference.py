"""Log-probabilities of the data under the model as it was before the first step, computed once.

Losses that compare with a reference (dpo, kto) need these numbers alone, so that no second model is kept while
training, whichever weights move. They lie in the run directory, and resuming reads them back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tunerun import artifacts
from tunerun.plan.steps import Placement
from tunerun.progress import Progress
from tunerun.train import batches
from tunerun.train.job import precision_of
from tunerun.train.objectives.objective import Examples, Objective

FOLDER = "reference"
_KEY = "key"


def key_of(identity: Mapping[str, Any]) -> str:
    """Returns a hash of what the numbers depend on: choices, data and base model by dotted key."""
    return hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()


def read(path: Path, key: str) -> dict[str, Tensor] | None:
    """Reads the numbers of a file; None when there are none, or of something else."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            if file.metadata()[_KEY] != key:
                return None
            return {name: file.get_tensor(name) for name in sorted(file.keys())}
    except SafetensorError:
        return None


def write(path: Path, key: str, tensors: Mapping[str, Tensor]) -> None:
    """Publishes a file of numbers."""
    with artifacts.publish(path) as staging:
        save_file(dict(tensors), staging, metadata={_KEY: key})


@torch.no_grad()
def compute(
    network: Any, objective: Objective, examples: Examples, *, batch_size: int, placement: Placement
) -> dict[str, Tensor]:
    """Computes the reference log-probabilities of all rows.

    Args:
        network: As it is before the first step.
        objective: Has a reference.
        examples: The rows.
        batch_size: Rows computed at a time.
        placement: Device and precision.

    Returns:
        By name, each of shape (rows,), float32, on the CPU.
    """
    function: Callable[..., dict[str, Tensor]] | None = objective.reference
    assert function is not None, "the objective has a reference"
    was_training = network.training
    network.eval()
    found: list[dict[str, Tensor]] = []
    with Progress("reference", total=len(examples), unit="rows") as progress, precision_of(placement):
        for rows in batches.split(range(len(examples)), batch_size):
            part = function(network, examples, rows, placement.device)
            found.append({name: values.float().cpu() for name, values in part.items()})
            progress.advance(len(rows))
    network.train(was_training)
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}
