"""A merge of an adapter streamed over safetensors, to the bits that peft's `merge_and_unload` gives.

Tensors that the adapter does not touch are copied by the kernel. The others are widened to float32 a few
rows at a time, the update is added, and the sum is rounded back to the base's type.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tunerun.artifacts import ADAPTER_WEIGHTS, publish, sha256, write_json
from tunerun.errors import StageError
from tunerun.formats.floats import is_finite
from tunerun.formats.merged import MergedTensor, MergePlan, RowReader, plan_merge, row_reader
from tunerun.formats.safetensors import ModelWriter
from tunerun.formats.share import cores, share_out
from tunerun.models.folder import carry_files, set_chat_template
from tunerun.plan.steps import Quantisation
from tunerun.progress import Progress

# Values worked on at once by a thread: few enough to stay in its cache through every pass.
_BLOCK_VALUES = 1 << 17
# With more, the disk is what they wait for.
_MOST_THREADS = 8

PROVENANCE = "merge.json"


def merge_adapter(
    base: Path,
    adapter: Path,
    out: Path,
    *,
    max_shard_size_bytes: int,
    chat_template: str | None = None,
    quantisation: Quantisation | None = None,
) -> None:
    """Writes a base model with an adapter merged in, published atomically.

    The bits are those of peft for LoRA on linear layers up to rank 192, and for DoRA where `dora` says. Above
    that rank the float32 sums may differ in their last bit. For LoRA on embeddings peft rounds the update before
    adding it; here only the sum is rounded.

    Args:
        base: Folder with config.json and safetensors weights in a float type.
        adapter: Folder with a LoRA adapter in peft's format.
        out: The merged model's folder; replaced when it exists.
        max_shard_size_bytes: Of data in one weight file; a larger tensor gets a file to itself.
        chat_template: Jinja source that replaces the model's own.
        quantisation: What the base's linear layers went through in training and go through again first.

    Raises:
        UserError: The base or the adapter is missing, broken, or cannot be merged; names the field or tensor.
        StageError: A merged weight is infinite or not a number.
        OSError: The file system refused a read or a write (a full disk, say).
    """
    plan = plan_merge(base, adapter, quantisation)
    with publish(out) as staging:
        staging.mkdir()
        carry_files(base, staging, adapter=adapter)
        if chat_template is not None:
            set_chat_template(staging, chat_template)
        text = json.dumps(plan.config, indent=2, ensure_ascii=False) + "\n"
        (staging / "config.json").write_text(text, encoding="utf-8")
        write_json(staging / PROVENANCE, _provenance(base, adapter, quantisation))
        _write_weights(plan, staging, max_shard_size_bytes)


def _provenance(base: Path, adapter: Path, quantisation: Quantisation | None) -> dict[str, Any]:
    """Says what a merged model was made of; the base's weights are named, the adapter's identified."""
    return {
        "schema": 1,
        "base": base.name,
        "merge_base": "full_precision" if quantisation is None else "dequantised",
        "quantisation": None if quantisation is None else asdict(quantisation),
        "adapter_sha256": sha256(adapter / ADAPTER_WEIGHTS),
    }


def _write_weights(plan: MergePlan, out: Path, max_shard_size_bytes: int) -> None:
    slots = [(name, tensor.dtype, tensor.shape) for name, tensor in plan.tensors.items()]
    total = sum(tensor.source.bytes for tensor in plan.tensors.values())
    with (
        ModelWriter(out, slots, max_shard_size_bytes=max_shard_size_bytes) as writer,
        Progress("merge", total=total, unit="bytes") as progress,
    ):

        def jobs() -> Iterator[Callable[[], None]]:
            for name, tensor in plan.tensors.items():
                if tensor.untouched:
                    yield partial(writer.copy, tensor.source, name)
                else:
                    yield from _changes(writer, name, tensor)
                progress.advance(tensor.source.bytes)

        share_out(jobs(), threads=min(cores(), _MOST_THREADS))


def _changes(writer: ModelWriter, name: str, tensor: MergedTensor) -> Iterator[Callable[[], None]]:
    read, rows = row_reader(tensor), tensor.shape[0]
    step = max(1, _BLOCK_VALUES // tensor.source.row_values)
    for first in range(0, rows, step):
        yield partial(_write_changed, writer, name, tensor.dtype, read, slice(first, min(first + step, rows)))


def _write_changed(writer: ModelWriter, name: str, dtype: str, read: RowReader, rows: slice) -> None:
    values = read(rows.start, rows.stop - rows.start)
    if not is_finite(values, dtype):
        fix = "The adapter or the base is broken."
        raise StageError(f"{name}: a merged weight is infinite or not a number. {fix}")
    writer.write_rows(name, rows.start, values)
