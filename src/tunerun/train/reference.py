"""Log-probabilities of the data under the model as it was before the first step, computed once.

Losses that compare with a reference (dpo, kto) need these numbers alone, so that no second model is kept while
training, whichever weights move. They lie in the run directory, and resuming reads them back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tunerun import artifacts
from tunerun.plan import step_keys
from tunerun.progress import Progress
from tunerun.train import batches
from tunerun.train.objectives.objective import Examples, Objective
from tunerun.train.ranks import Ranks

FOLDER = "reference"
_KEY = "key"


def key_of(identity: Mapping[str, Any]) -> str:
    """Returns a hash of what the numbers depend on.

    Args:
        identity: Of the training, by dotted key. How it is computed, and how the weights are moved after the first
            step, is left out: a training that goes on in another way keeps the reference that it began with.
    """
    kept = {
        key: value
        for key, value in identity.items()
        if not step_keys.changes_only_bits(key) and not key.startswith("train.")
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


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


def compute(
    run: Callable[[Callable[[Any], Any]], Any],
    objective: Objective,
    examples: Examples,
    *,
    batch_size: int,
    device: str,
    ranks: Ranks,
) -> dict[str, Tensor]:
    """Computes the reference log-probabilities of all rows, each rank some of them.

    Args:
        run: Applies a function to the network as it is before the first step.
        objective: Has a reference.
        examples: The rows.
        batch_size: Rows computed at a time.
        device: Of the computation.
        ranks: This process among those that train.

    Returns:
        By name, each of shape (rows,), float32, on the CPU.
    """
    function: Callable[..., dict[str, Tensor]] | None = objective.reference
    assert function is not None, "the objective has a reference"
    with Progress("reference", total=len(examples), unit="rows") as progress, torch.no_grad():

        def of_rows(rows: Sequence[int]) -> dict[str, Tensor]:
            part = run(lambda network: _judged(network, function, examples, rows, device))
            progress.advance(len(rows) * ranks.world)
            return {name: values.float().cpu() for name, values in part.items()}

        found = ranks.deal(batches.split(range(len(examples)), batch_size), of_rows)
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}


def _judged(
    network: Any,
    function: Callable[..., dict[str, Tensor]],
    examples: Examples,
    rows: Sequence[int],
    device: str,
) -> dict[str, Tensor]:
    was_training = network.training
    network.eval()
    found = function(network, examples, rows, device)
    network.train(was_training)
    return found
