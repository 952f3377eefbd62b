"""Weights and their running average change places in a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tunerun import artifacts
from tunerun.errors import Problem, UserError
from tunerun.formats.floats import Array
from tunerun.formats.safetensors import TensorInfo, read_header, read_tensor, write_at

# peft keeps several adapters apart by a name, and leaves it out in files.
_ADAPTER_NAME = re.compile(r"(\.modules_to_save)?\.default(?=\.|$)")


def swap(file: Path, checkpoint: Path, *, told: Path) -> None:
    """Gives adapter/ or model/ the values of an average, and the average's file those that were there.

    Args:
        file: The average, by parameter.
        checkpoint: Has adapter/ or model/, where the trained half of PiSSA's factors comes before the initial one.
        told: What the checkpoint is called in an error.

    Raises:
        UserError: The average is one of other weights; nothing was written.
    """
    averaged, stored = read_header(file), _stored(checkpoint)
    pairs = {name: stored.get(_in_file(name, stored)) for name in averaged}
    odd = [name for name, target in pairs.items() if target is None or not _begins_with(target, averaged[name])]
    if odd:
        what = f"its average has {odd[0]}, which is none of its weights."
        raise UserError(Problem(where=str(told), what=what, fix="Take another checkpoint, or the run's own result."))
    known = {target.name for target in pairs.values() if target is not None}
    left = [info for info in stored.values() if info.name not in known and info.file.parent.name == artifacts.ADAPTER]
    for name, target in pairs.items():
        assert target is not None, "looked for above"
        source = averaged[name]
        average, values = read_tensor(source), read_tensor(target)
        block = tuple(slice(length) for length in source.shape)
        changed = values.copy()
        changed[block] = average
        # An adapter has tied weights under both of their names.
        same = [info for info in left if info.shape == target.shape and np.array_equal(read_tensor(info), values)]
        for info in (target, *same):
            _overwrite(info, changed)
        _overwrite(source, values[block])


def _stored(checkpoint: Path) -> dict[str, TensorInfo]:
    folders = (checkpoint / name for name in (artifacts.ADAPTER, artifacts.CHECKPOINT_MODEL))
    found: dict[str, TensorInfo] = {}
    for file in sorted(file for folder in folders for file in folder.glob("*.safetensors")):
        found |= read_header(file)
    return found


def _in_file(parameter: str, stored: Mapping[str, TensorInfo]) -> str:
    """Returns what a parameter is called in adapter/ or model/."""
    if parameter in stored:
        return parameter
    return "base_model.model." + _ADAPTER_NAME.sub("", parameter).replace(
        ".lora_magnitude_vector.weight", ".lora_magnitude_vector"
    )


def _begins_with(target: TensorInfo, part: TensorInfo) -> bool:
    if target.dtype != part.dtype or len(target.shape) != len(part.shape):
        return False
    return all(length in (own, 2 * own) for length, own in zip(target.shape, part.shape, strict=True))


def _overwrite(tensor: TensorInfo, values: Array) -> None:
    with tensor.file.open("r+b") as file:
        write_at(file.fileno(), values, tensor.offset)
