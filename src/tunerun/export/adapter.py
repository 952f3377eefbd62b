"""A LoRA adapter by itself as GGUF, which llama.cpp adds to its base model when it loads it (`--lora`).

Names and metadata are those of llama.cpp's `convert_lora_to_gguf.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tunerun.errors import Problem, StageError, UserError, require
from tunerun.export.model import find_architecture
from tunerun.export.parameters import check_config, fill_config
from tunerun.export.tensors import Order, file_names, fused_orders, head_order
from tunerun.formats.architectures import Architecture
from tunerun.formats.floats import Float32, is_finite, to_float32
from tunerun.formats.ggml_types import TYPES
from tunerun.formats.gguf import GgufFile, GgufTensor
from tunerun.formats.gguf_header import TOKEN_EMBEDDING
from tunerun.formats.lora import Adapter, Shift, Update, read_adapter
from tunerun.formats.safetensors import read_tensor

# What llama.cpp makes of an update: its name in the file, the update, and the order of its rows.
_Target = tuple[str, Update, Order | None]


def write_adapter(folder: Path, config: Mapping[str, Any], out: Path, *, name: str) -> None:
    """Writes an adapter as float32.

    Args:
        folder: The adapter's.
        config: config.json of its base model.
        out: The file.
        name: Shown to users of the file.

    Raises:
        UserError: The adapter has parts that llama.cpp cannot add; names each.
        StageError: A factor is infinite or not a number.
        OSError: The file system refused a read or a write (a full disk, say).
    """
    architecture = find_architecture(config, folder)
    filled = fill_config(config, architecture)
    adapter = read_adapter(folder, model_type=filled["model_type"])
    targets, problems = _targets(adapter, filled, architecture)
    problems += check_config(filled, architecture)
    if problems:
        raise UserError(problems)
    alpha = _common_alpha([update for _, update, _ in targets])
    shapes = {}
    for target, update, order in targets:
        rank, columns = update.a.shape
        shapes[f"{target}.lora_a"] = (columns, rank) if target == TOKEN_EMBEDDING else (rank, columns)
        shapes[f"{target}.lora_b"] = (update.b.shape[0] if order is None else len(order), rank)
    tensors = [GgufTensor(name=key, shape=shape, type=TYPES["F32"]) for key, shape in shapes.items()]
    with GgufFile(out, _header(architecture, name, alpha), tensors) as file:
        for target, update, order in targets:
            a, b = _factors(update, alpha)
            for key, values in (
                ("a", a.T if target == TOKEN_EMBEDDING else a),
                ("b", b if order is None else b[order]),
            ):
                file.write_rows(f"{target}.lora_{key}", 0, np.ascontiguousarray(values).view(np.uint8))


def _targets(
    adapter: Adapter, config: Mapping[str, Any], architecture: Architecture
) -> tuple[list[_Target], list[Problem]]:
    names = file_names(adapter.updates, config, architecture)
    fused = fused_orders(config, architecture)
    targets: list[_Target] = []
    problems = []
    for name, update in adapter.updates.items():
        if isinstance(update, Shift):
            problems.append(_problem(adapter, name, "is a bias, and a GGUF adapter holds low-rank updates only."))
        elif update.lengths is not None:
            problems.append(_problem(adapter, name, "has DoRA's lengths, which llama.cpp does not know."))
        elif name in fused:
            targets += [(ours, update, order) for ours, order in fused[name].items()]
        elif name in names:
            targets.append((names[name], update, head_order(names[name], update.shape[0], config, architecture)))
        else:
            problems.append(_problem(adapter, name, f"llama.cpp's {architecture.name} has no tensor for it."))
    for name in (*adapter.replacements, *adapter.token_rows):
        problems.append(_problem(adapter, name, "was trained whole, and a GGUF adapter holds low-rank updates only."))
    return targets, problems


def _common_alpha(updates: list[Update]) -> float:
    """Returns what llama.cpp divides by each rank to get the scale; rsLoRA's differs from the config's."""
    return updates[0].scaling * updates[0].a.shape[0]


def _factors(update: Update, alpha: float) -> tuple[Float32, Float32]:
    a = to_float32(read_tensor(update.a), update.a.dtype)
    b = to_float32(read_tensor(update.b), update.b.dtype)
    for values, info in ((a, update.a), (b, update.b)):
        if not is_finite(values, "F32"):
            raise StageError(f"{info.file}: {info.name} holds a value that is infinite or not a number.")
    own = update.scaling * a.shape[0]
    # A module with an alpha or a rank of its own: the file has one alpha, so that the rest of the scale goes here.
    return a, b if own == alpha else b * np.float32(own / alpha)


def _header(architecture: Architecture, name: str, alpha: float) -> Any:
    gguf = require("gguf", "gguf")
    header = gguf.GGUFWriter(None, architecture.name)
    header.add_type("adapter")
    header.add_string("adapter.type", "lora")
    header.add_name(name)
    header.add_float32("adapter.lora.alpha", alpha)
    header.add_quantization_version(gguf.GGML_QUANT_VERSION)
    return header


def _problem(adapter: Adapter, name: str, what: str) -> Problem:
    return Problem(where=f"{adapter.folder}: {name}", what=what, fix="Set export.gguf.adapter=false.")
