"""Where the numbers of training go: metrics.jsonl always, TensorBoard and Weights & Biases when asked for."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from tunerun import artifacts
from tunerun.errors import require


class Tracker(Protocol):
    """Takes numbers."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the numbers of a step."""

    def close(self) -> None:
        """Flushes."""


class JsonLines:
    """One JSON object a line, readable while training goes on."""

    def __init__(self, path: Path, *, after_step: int) -> None:
        """Opens the file; lines of steps after `after_step` belong to work that was lost, and go."""
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= after_step]
        artifacts.write_text(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a line."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoard:
    """Event files for TensorBoard."""

    def __init__(self, folder: Path, *, after_step: int) -> None:
        """Opens a writer.

        Raises:
            MissingExtra: tensorboard is not installed.
        """
        require("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=after_step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a scalar for each number."""
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def close(self) -> None:
        """Flushes to disk."""
        self._writer.close()


class Wandb:
    """A run on Weights & Biases; offline, in the run directory, when there is no key."""

    def __init__(self, folder: Path, *, project: str, name: str, config: Mapping[str, Any]) -> None:
        """Starts a run.

        Raises:
            MissingExtra: wandb is not installed.
        """
        wandb: Any = require("wandb", "wandb")
        known = "WANDB_MODE" in os.environ or "WANDB_API_KEY" in os.environ or wandb.api.api_key is not None
        self._run = wandb.init(
            dir=str(folder), project=project, name=name, config=dict(config), mode=None if known else "offline"
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the numbers."""
        self._run.log({f"train/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """Finishes the run."""
        self._run.finish()


def peak_memory_bytes(device: str) -> int:
    """Returns the most memory used so far: of the GPU, or of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
