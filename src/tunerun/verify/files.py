"""Gate `files`: weights are whole and hold every tensor, before anything loads them."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tunerun import artifacts
from tunerun.chat.tokenizer import read_object
from tunerun.errors import UserError
from tunerun.formats.architectures import GGUF_ARCHITECTURES
from tunerun.formats.floats import STORAGE, is_finite
from tunerun.formats.ggml_types import FLOAT_TYPES
from tunerun.formats.gguf_header import TOKEN_EMBEDDING, GgufHeader, read_gguf_header
from tunerun.formats.safetensors import TensorInfo, read_header, read_rows, read_table
from tunerun.verify.gates import Gate

NAME = "files"
_ADVICE = "Run the stage that wrote it again."
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
# Computed from the config, so that no safetensors file has them.
_COMPUTED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_BLOCK_VALUES = 1 << 22


def folder_gate(folder: Path, like: Path | None, *, whole: bool) -> Gate:
    """Checks the weights of a model folder.

    Args:
        folder: With safetensors files.
        like: Folder whose tensors must all be there; None when they are not known.
        whole: Whether all weights are read, for infinite ones and those that are no numbers.
    """
    name = f"{NAME}:{folder.name}"
    try:
        tensors = read_table(folder)
    except UserError as error:
        return _failed(name, {}, str(error))
    measured: dict[str, Any] = {"tensors": len(tensors), "bytes": sum(info.bytes for info in tensors.values())}
    missing = sorted(set(read_table(like)) - set(tensors)) if like is not None else []
    if missing:
        return _failed(name, {**measured, "missing": len(missing)}, f"{missing[0]} is missing.")
    if whole:
        broken = next((key for key, info in tensors.items() if not _all_finite(info)), None)
        if broken is not None:
            return _failed(name, measured, f"{broken} holds a value that is infinite or not a number.")
    return _passed(name, measured)


def gguf_gate(path: Path, source: Path | None, *, whole: bool) -> Gate:
    """Checks a GGUF file.

    Args:
        path: The file.
        source: Folder of the model that it holds, weight for weight; None when there is none.
        whole: Whether weights that are not quantised are read, for infinite ones and those that are no numbers.
    """
    name = f"{NAME}:{path.name}"
    try:
        header = read_gguf_header(path, lists=False)
    except UserError as error:
        return _failed(name, {}, str(error))
    measured: dict[str, Any] = {"tensors": len(header.tensors), "bytes": path.stat().st_size}
    fault = _uneven_blocks(header)
    if fault is None and source is not None:
        wanted, found = _weights(source), _stored(header)
        measured |= {"weights": found}
        if wanted is not None and wanted != found:
            fault = f"it holds {found:,} weights, and the model has {wanted:,}."
    if fault is None and whole:
        fault = _not_finite(path, header)
    return _passed(name, measured) if fault is None else _failed(name, measured, fault)


def adapter_gate(path: Path, adapter: Path, *, whole: bool) -> Gate:
    """Checks an adapter in a GGUF file.

    Args:
        path: The file.
        adapter: Folder of the adapter that it was made from.
        whole: Whether its weights are read, for infinite ones and those that are no numbers.
    """
    name = f"{NAME}:{path.name}"
    try:
        header, updates = read_gguf_header(path, lists=False), _updates(adapter)
    except UserError as error:
        return _failed(name, {}, str(error))
    measured: dict[str, Any] = {"tensors": len(header.tensors), "bytes": path.stat().st_size, "updates": updates}
    fault = _uneven_pairs(header, updates)
    if fault is None and whole:
        fault = _not_finite(path, header)
    return _passed(name, measured) if fault is None else _failed(name, measured, fault)


def recorded_gate(out: Path) -> Iterator[Gate]:
    """Compares merged/ and export/ with the hashes that the run recorded when they were made."""
    record = out / artifacts.RECORD
    if not record.is_file():
        return
    stages = artifacts.read_json(record)["stages"]
    made = [item for stage in ("train", "merge", "export") for item in stages.get(stage, {}).get("artifacts", ())]
    changed = [
        item["path"]
        for item in made
        if not (out / item["path"]).exists()
        or artifacts.describe(out, item["kind"], item["path"]).sha256 != item["sha256"]
    ]
    measured = {"artifacts": len(made), "changed": len(changed)}
    name = f"{NAME}:recorded"
    if changed:
        how = "is not what was written" if (out / changed[0]).exists() else "was written and is gone"
        yield _failed(name, measured, f"{changed[0]} {how}.")
    elif not made:
        reason = "the run recorded nothing to compare with"
        yield Gate(name=name, measured=measured, bound={}, verdict="not_proved", reason=reason)
    else:
        yield _passed(name, measured)


def _passed(name: str, measured: dict[str, Any]) -> Gate:
    return Gate(name=name, measured=measured, bound={}, verdict="pass", reason="")


def _failed(name: str, measured: dict[str, Any], what: str) -> Gate:
    return Gate(name=name, measured=measured, bound={}, verdict="fail", reason=f"{what} {_ADVICE}")


def _all_finite(info: TensorInfo) -> bool:
    if info.dtype not in STORAGE:
        return True
    step = max(_BLOCK_VALUES // max(info.row_values, 1), 1)
    return all(
        is_finite(read_rows(info, first, min(step, info.rows - first)), info.dtype)
        for first in range(0, info.rows, step)
    )


def _uneven_blocks(header: GgufHeader) -> str | None:
    """Says which block lacks a tensor that others have."""
    blocks: defaultdict[str, set[str]] = defaultdict(set)
    for name in header.tensors:
        match = _BLOCK.fullmatch(name)
        if match is not None:
            blocks[match[1]].add(match[2])
    wanted = header.fields.get(f"{header.fields.get('general.architecture')}.block_count")
    if wanted is not None and len(blocks) != wanted:
        return f"it holds {len(blocks)} of {wanted} blocks."
    everything = set[str]().union(*blocks.values())
    if header.fields.get("general.architecture") not in {item.name for item in GGUF_ARCHITECTURES.values()}:
        # Blocks of a mixture or a hybrid differ.
        return None
    lacking = [f"blk.{number}.{name}" for number, names in blocks.items() for name in sorted(everything - names)]
    return f"{lacking[0]} is missing." if lacking else None


def _updates(adapter: Path) -> int:
    """Counts the weights that an adapter updates."""
    names = read_header(adapter / artifacts.ADAPTER_WEIGHTS)
    return sum(".lora_A." in name or name.endswith(".lora_embedding_A") for name in names)


def _uneven_pairs(header: GgufHeader, updates: int) -> str | None:
    """Says which of the two factors of an update is missing or does not fit, or that updates are."""
    if header.fields.get("general.type") != "adapter":
        return "it is no adapter."
    weights = dict.fromkeys(name.rpartition(".")[0] for name in header.tensors)
    for weight in weights:
        a, b = (header.tensors.get(f"{weight}.lora_{part}") for part in "ab")
        if a is None or b is None:
            return f"{weight}.lora_{'a' if a is None else 'b'} is missing."
        # That of an embedding, whose rows are looked up, lies the other way.
        rank = a.shape[-1] if weight == TOKEN_EMBEDDING else a.shape[0]
        if b.shape[-1] != rank:
            return f"{weight} has the ranks {rank} and {b.shape[-1]}."
    # A fused weight is several in the file.
    return None if len(weights) >= updates else f"it holds {len(weights)} of {updates} updates."


def _weights(source: Path) -> int | None:
    """Counts the weights of a model; None for architectures whose files hold others than are exported."""
    known: Mapping[str, Any] = read_object(source / "config.json")
    if not set(known.get("architectures") or []) & set(GGUF_ARCHITECTURES):
        return None
    return sum(math.prod(info.shape) for info in read_table(source).values())


def _stored(header: GgufHeader) -> int:
    return sum(math.prod(tensor.shape) for name, tensor in header.tensors.items() if name not in _COMPUTED)


def _not_finite(path: Path, header: GgufHeader) -> str | None:
    with path.open("rb") as stream:
        for name, tensor in header.tensors.items():
            if tensor.type.name not in FLOAT_TYPES:
                continue
            size = 4 if tensor.type.name == "F32" else 2
            for first in range(0, tensor.bytes, size * _BLOCK_VALUES):
                stream.seek(tensor.offset + first)
                data = stream.read(min(size * _BLOCK_VALUES, tensor.bytes - first))
                kind = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[tensor.type.name]
                if not is_finite(np.frombuffer(data, kind), tensor.type.name):
                    return f"{name} holds a value that is infinite or not a number."
    return None
