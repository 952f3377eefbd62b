"""A LoRA merge streamed over safetensors, to the bits that peft's `merge_and_unload` gives.

Tensors that the adapter does not touch are copied by the kernel. The others are widened to float32 a few
rows at a time, the update is added, and the sum is rounded back to the base's type.
"""

from __future__ import annotations

import json
from pathlib import Path

from tunerun.artifacts import publish
from tunerun.errors import StageError
from tunerun.formats.floats import is_finite
from tunerun.formats.merged import MergedTensor, MergePlan, plan_merge, row_reader
from tunerun.formats.safetensors import ModelWriter
from tunerun.models.folder import carry_files, set_chat_template
from tunerun.progress import Progress

# Values worked on at once: small enough to stay in the cache through every pass.
_BLOCK_VALUES = 1 << 18


def merge_adapter(
    base: Path, adapter: Path, out: Path, *, max_shard_size_bytes: int, chat_template: str | None = None
) -> None:
    """Writes a base model with an adapter merged in, published atomically.

    The bits are those of peft for LoRA on linear layers up to rank 192. Above that the float32 sums may
    differ in their last bit. For LoRA on embeddings peft rounds the update before adding it; here only the
    sum is rounded.

    Args:
        base: Folder with config.json and safetensors weights in a float type.
        adapter: Folder with a LoRA adapter in peft's format.
        out: The merged model's folder; replaced when it exists.
        max_shard_size_bytes: Of data in one weight file; a larger tensor gets a file to itself.
        chat_template: Jinja source that replaces the model's own.

    Raises:
        UserError: The base or the adapter is missing, broken, or cannot be merged; names the field or tensor.
        StageError: A merged weight is infinite or not a number.
        OSError: The file system refused a read or a write (a full disk, say).
    """
    plan = plan_merge(base, adapter)
    with publish(out) as staging:
        staging.mkdir()
        carry_files(base, staging, adapter=adapter)
        if chat_template is not None:
            set_chat_template(staging, chat_template)
        text = json.dumps(plan.config, indent=2, ensure_ascii=False) + "\n"
        (staging / "config.json").write_text(text, encoding="utf-8")
        _write_weights(plan, staging, max_shard_size_bytes)


def _write_weights(plan: MergePlan, out: Path, max_shard_size_bytes: int) -> None:
    slots = [(name, tensor.dtype, tensor.source.shape) for name, tensor in plan.tensors.items()]
    total = sum(tensor.source.bytes for tensor in plan.tensors.values())
    with (
        ModelWriter(out, slots, max_shard_size_bytes=max_shard_size_bytes) as writer,
        Progress("merge", total=total, unit="bytes") as progress,
    ):
        for name, tensor in plan.tensors.items():
            if tensor.update is None and tensor.source.dtype == tensor.dtype:
                writer.copy(tensor.source, name)
            else:
                _write_changed(writer, name, tensor)
            progress.advance(tensor.source.bytes)


def _write_changed(writer: ModelWriter, name: str, tensor: MergedTensor) -> None:
    source = tensor.source
    read = row_reader(tensor)
    step = max(1, _BLOCK_VALUES // source.row_values)
    for first in range(0, source.rows, step):
        values = read(first, min(step, source.rows - first))
        if not is_finite(values, tensor.dtype):
            fix = "The adapter or the base is broken."
            raise StageError(f"{name}: a merged weight is infinite or not a number. {fix}")
        writer.write_rows(name, first, values)
