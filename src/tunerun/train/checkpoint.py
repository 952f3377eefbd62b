"""Checkpoints that are complete or absent: staged, flushed, hashed, renamed, and verified before use.

    step-40/
        adapter/ or model/       loadable as they are, in the precision that is trained (float32)
        optimiser.safetensors    AdamW's moments by parameter
        manifest.json            step, what it belongs to, and the sha256 of every other file; written last

Random numbers need no state: dropout is seeded by (seed, step), the order of the data by (seed, epoch).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tunerun import artifacts
from tunerun.errors import Problem, UserError
from tunerun.train import optim

SCHEMA = 1
MANIFEST = "manifest.json"
OPTIMISER = "optimiser.safetensors"
_PREFIX = "step-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Progressed:
    """How far training has come."""

    step: int = 0
    """Optimiser steps done."""
    tokens: int = 0
    """Tokens computed."""
    trained_tokens: int = 0
    """Tokens the loss was taken over."""
    seconds: float = 0.0
    """Time spent in steps, over all processes that worked on it."""
    first_loss: float | None = None
    """Loss of the first step."""
    last_loss: float | None = None
    """Loss of the last step done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A verified checkpoint."""

    folder: Path
    progress: Progressed
    identity: Mapping[str, Any]
    """What it belongs to: step choices, data and base model by dotted key."""


def write(
    folder: Path,
    progress: Progressed,
    *,
    identity: Mapping[str, Any],
    save_weights: Callable[[Path], None],
    optimiser: torch.optim.AdamW,
    parameters: Mapping[str, torch.nn.Parameter],
    keep: int,
) -> Path:
    """Publishes a checkpoint, then removes the oldest beyond `keep`.

    Args:
        folder: The run's checkpoints.
        progress: Where training stands.
        identity: What the checkpoint belongs to.
        save_weights: Writes the weights into a staging folder.
        optimiser: Its state is saved.
        parameters: Trainable parameters by name.
        keep: Number of newest checkpoints kept, at least 1.

    Returns:
        The published folder.

    Raises:
        OSError: It could not be written; older checkpoints stay as they were.
    """
    target = folder / f"{_PREFIX}{progress.step}"
    with artifacts.publish(target) as staging:
        staging.mkdir()
        save_weights(staging)
        save_file(optim.state_tensors(optimiser, parameters), staging / OPTIMISER)
        files = sorted(path for path in staging.rglob("*") if path.is_file())
        manifest = {
            "schema": SCHEMA,
            "progress": asdict(progress),
            "identity": dict(identity),
            "files": {path.relative_to(staging).as_posix(): artifacts.sha256(path) for path in files},
        }
        artifacts.write_json(staging / MANIFEST, manifest)
    for number in _numbers(folder)[max(1, keep) :]:
        shutil.rmtree(folder / f"{_PREFIX}{number}")
    return target


def newest(folder: Path) -> Checkpoint | None:
    """Returns the newest checkpoint that is whole; says on stderr why newer ones are passed over."""
    for number in _numbers(folder):
        path = folder / f"{_PREFIX}{number}"
        fault = _fault(path)
        if fault is None:
            manifest = artifacts.read_json(path / MANIFEST)
            progress = Progressed(**manifest["progress"])
            return Checkpoint(folder=path, progress=progress, identity=manifest["identity"])
        print(f"checkpoint {path.name} is not used: {fault}", file=sys.stderr)
    return None


def check_identity(checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Raises when a checkpoint belongs to another training.

    Raises:
        UserError: Names every key that differs.
    """
    fix = "Set it back to go on, or train anew in another run_dir."
    problems = [
        Problem(where=key, what=f"{checkpoint.folder} was made with {before!r}; now it is {now!r}.", fix=fix)
        for key in sorted({*identity, *checkpoint.identity})
        if (before := checkpoint.identity.get(key)) != (now := identity.get(key))
    ]
    if problems:
        raise UserError(problems)


def restore_optimiser(
    checkpoint: Checkpoint, optimiser: torch.optim.AdamW, parameters: Mapping[str, torch.nn.Parameter]
) -> None:
    """Gives an optimiser the state of a checkpoint."""
    optim.restore_state(optimiser, parameters, load_file(checkpoint.folder / OPTIMISER))


def _numbers(folder: Path) -> list[int]:
    names = (path.name.removeprefix(_PREFIX) for path in folder.glob(f"{_PREFIX}*"))
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def _fault(folder: Path) -> str | None:
    path = folder / MANIFEST
    if not path.is_file():
        return f"{MANIFEST} is missing"
    try:
        manifest = artifacts.read_json(path)
    except ValueError:
        return f"{MANIFEST} is damaged"
    if manifest["schema"] > SCHEMA:
        return f"it was written by a newer version (schema {manifest['schema']})"
    for name, digest in manifest["files"].items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if artifacts.sha256(folder / name) != digest:
            return f"{name} is damaged"
    return None
