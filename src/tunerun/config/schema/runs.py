"""Keys of the sections `sweep` and `lock`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """How the trials of `tunerun -m` are compared."""

    metric: Literal["eval_loss", "train_loss", "tokens_per_second", "gguf_bytes", "quantisation_kl"] = "eval_loss"
    """What ranks the trials: the loss on held-out rows after training, the last training loss, the median speed, the
    size of the smallest GGUF file, or the largest divergence of a GGUF file from the merged model."""
    finish_best: bool = False
    """Run the stages after eval for the best trial only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LockConfig:
    """What a run has to find as it was; `tunerun lock RUN` writes these."""

    model_sha256: str | None = None
    """Hash of the base model's files."""
    data_sha256: Mapping[str, str] = field(default_factory=dict)
    """Hash of each local file or folder of data, by its path."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Version of each package that can change a result."""
