"""A model folder whose linear layers hold 4 bits a weight (bitsandbytes' NF4), for transformers and vLLM; no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunerun import artifacts
from tunerun.errors import StageError
from tunerun.formats import bitsandbytes
from tunerun.formats.floats import is_finite, to_float32
from tunerun.formats.merged import MergedTensor, MergePlan, is_linear, row_reader
from tunerun.formats.safetensors import ModelWriter, Slot
from tunerun.models.folder import carry_files, set_chat_template
from tunerun.progress import Progress

_BLOCK_VALUES = 1 << 22


def write_bnb4(
    folder: Path, weights: MergePlan, out: Path, *, double: bool, template: str | None, max_shard_size_bytes: int
) -> None:
    """Quantises a model as it is read, one tensor in memory at a time.

    Args:
        folder: With the model's tokenizer and settings.
        weights: The model's config and tensors.
        out: The new folder.
        double: Whether the scales are quantised too.
        template: Chat template that replaces the folder's own.
        max_shard_size_bytes: Of data in one weights file.

    Raises:
        StageError: There is no linear layer, or a weight is infinite or not a number.
        OSError: The file system refused a read or a write.
    """
    linear = [tensor for name, tensor in weights.tensors.items() if is_linear(name, tensor.shape)]
    if not linear:
        what = "no weight of it is called `….layers.N….weight`, as those of linear layers that are quantised are."
        raise StageError(f"{folder}: {what} Set export.bnb4.write=false.")
    out.mkdir()
    carry_files(folder, out)
    if template is not None:
        set_chat_template(out, template)
    settings = _settings(bitsandbytes.TORCH_NAMES[linear[0].dtype], double)
    config = {**weights.config, "quantization_config": settings}
    artifacts.write_json(out / "config.json", config)
    slots = [slot for name, tensor in weights.tensors.items() for slot in _slots(name, tensor, double)]
    total = sum(tensor.source.bytes for tensor in weights.tensors.values())
    with (
        ModelWriter(out, slots, max_shard_size_bytes=max_shard_size_bytes) as writer,
        Progress("export", total=total, unit="bytes") as progress,
    ):
        for name, tensor in weights.tensors.items():
            if is_linear(name, tensor.shape):
                _write_packed(writer, name, tensor, double)
            elif tensor.untouched:
                writer.copy(tensor.source, name)
            else:
                _write_plain(writer, name, tensor)
            progress.advance(tensor.source.bytes)


def _settings(dtype: str, double: bool) -> dict[str, Any]:
    """Returns what transformers' `BitsAndBytesConfig` is read from."""
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": double,
        "bnb_4bit_compute_dtype": dtype,
    }


def _slots(name: str, tensor: MergedTensor, double: bool) -> list[Slot]:
    if not is_linear(name, tensor.shape):
        return [(name, tensor.dtype, tensor.shape)]
    return bitsandbytes.packed_slots(name, tensor.shape, tensor.dtype, double=double)


def _write_packed(writer: ModelWriter, name: str, tensor: MergedTensor, double: bool) -> None:
    stored = row_reader(tensor)(0, tensor.shape[0])
    _check(name, stored, tensor.dtype)
    packed = bitsandbytes.pack(name, to_float32(stored, tensor.dtype), tensor.dtype, double=double)
    for part, values in packed.items():
        target = writer.table[part]
        writer.write_rows(part, 0, values.reshape(target.rows, target.row_values))


def _write_plain(writer: ModelWriter, name: str, tensor: MergedTensor) -> None:
    read, rows = row_reader(tensor), tensor.shape[0]
    step = max(1, _BLOCK_VALUES // tensor.source.row_values)
    for first in range(0, rows, step):
        values = read(first, min(step, rows - first))
        _check(name, values, tensor.dtype)
        writer.write_rows(name, first, values)


def _check(name: str, values: Any, dtype: str) -> None:
    if not is_finite(values, dtype):
        raise StageError(f"{name} holds a value that is infinite or not a number.")
