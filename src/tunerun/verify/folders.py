"""Gates `bnb4_logits`, `gptq_logits`, `awq_logits`, `fp8_logits`: quantised folders predict what the model did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tunerun import artifacts
from tunerun.config.schema import BoundConfig
from tunerun.errors import MissingExtra
from tunerun.formats import compressed, gptq
from tunerun.formats.floats import STORAGE, Float32, to_float32
from tunerun.formats.safetensors import TensorInfo, read_table, read_tensor
from tunerun.models import load
from tunerun.verify.gates import Gate, Reference, compare, logits_of, quantised_bound, quantised_gate

PackedFolder = Literal["gptq", "awq", "fp8"]
PACKED: tuple[PackedFolder, ...] = ("gptq", "awq", "fp8")

# As `logits` has for GGUF types of as many bits: q4_0; q2_k, q4_k_m and q8_0. A seeded random model of two layers lost
# 0.082 in AWQ. In FP8, with its inputs rounded, it lost 0.009 and the quickstart's model 0.010 (first choices 96 %
# the same, perplexity 0.998 times), which the bound allows five times.
_BNB4_KL_NATS = 3e-1
_GPTQ_KL_NATS = {2: 2.0, 4: 2e-1, 8: 1e-2}
_AWQ_KL_NATS = 2e-1
_FP8_KL_NATS = 5e-2


@dataclass(frozen=True, kw_only=True, slots=True)
class _Packing:
    """How a folder holds the weights of its layers."""

    parts: tuple[str, ...]
    """Of a layer, instead of `weight`."""
    unpack: Callable[[Mapping[str, Any]], Float32]
    kl_nats: float
    """Largest mean divergence from the unquantised model."""
    round_inputs: Callable[[Tensor], Tensor] | None = None
    """What servers do to the inputs of its layers; None when they take them as they are."""


def _packing(kind: PackedFolder, folder: Path) -> _Packing:
    if kind == "awq":
        return _Packing(parts=compressed.PACKED_PARTS, unpack=compressed.unpack_packed, kl_nats=_AWQ_KL_NATS)
    if kind == "fp8":
        parts, unpack = compressed.FP8_PARTS, compressed.unpack_fp8
        return _Packing(parts=parts, unpack=unpack, kl_nats=_FP8_KL_NATS, round_inputs=_round_to_fp8)
    bits = artifacts.read_json(folder / load.CONFIG)["quantization_config"]["bits"]
    return _Packing(parts=gptq.PARTS, unpack=partial(gptq.unpack, bits=bits), kl_nats=_GPTQ_KL_NATS[bits])


def packed_gate(
    kind: PackedFolder, folder: Path, source: Path, reference: Reference, device: str, wanted: BoundConfig
) -> Gate:
    """Compares a quantised folder with the model it was made from; its weights are unpacked here, without its library.

    Args:
        kind: What made it.
        folder: As the export stage writes it.
        source: Folder of the model it was made from.
        reference: The model it was made from.
        device: `cpu` or `cuda`.
        wanted: Bounds that the user set.
    """
    name, packing = f"{kind}_logits:{folder.name}", _packing(kind, folder)
    bound = quantised_bound(packing.kl_nats, wanted)
    network = load.load_model(source, dtype=torch.float32, device=device)
    # A tied head has the name of its own as well.
    parameters, table = dict(network.named_parameters(remove_duplicate=False)), read_table(folder)
    layers = _packed_layers(parameters, table, packing)
    packed = [f"{layer}.{part}" for layer in layers for part in packing.parts]
    fault = _unlike(network, parameters, table, layers, packed) if layers else "no layer is quantised."
    if fault is not None:
        measured = {"layers": len(layers)}
        return Gate(name=name, measured=measured, bound=bound, verdict="fail", reason=f"{fault} Export again.")
    for layer in layers:
        parts = {part: _part(table[f"{layer}.{part}"]) for part in packing.parts}
        parameters[f"{layer}.weight"].data.copy_(torch.from_numpy(packing.unpack(parts)))
        if (rounded := packing.round_inputs) is not None:
            network.get_submodule(layer).register_forward_pre_hook(partial(_replace_input, rounded))
    for key in (table.keys() & parameters.keys()) - set(packed):
        values = to_float32(read_tensor(table[key]), table[key].dtype)
        parameters[key].data.copy_(torch.from_numpy(values).reshape(parameters[key].shape))
    found = logits_of(network, reference.texts)
    difference = compare(reference.texts, reference.logits, found, most_tie_nats=bound["near_tie_nats"])
    advice = "Take more bits, calibrate on more rows, export again"
    return quantised_gate(name, kind, difference, bound, advice, layers=len(layers))


def _replace_input(change: Callable[[Tensor], Tensor], _layer: torch.nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return change(*inputs)


def _round_to_fp8(values: Tensor) -> Tensor:
    """Rounds inputs to E4M3 with a scale for each token, as llm-compressor's FP8_DYNAMIC asks servers to."""
    kind = torch.float8_e4m3fn
    scales = values.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny) / torch.finfo(kind).max
    return (values / scales).to(kind).to(values.dtype) * scales


def _packed_layers(parameters: Mapping[str, Tensor], table: Mapping[str, TensorInfo], packing: _Packing) -> list[str]:
    """Returns the layers of a model of which a folder has packed parts, if only some."""
    split = [key.rpartition(".") for key in table if key not in parameters]
    found = dict.fromkeys(layer for layer, _, part in split if part in packing.parts)
    return [layer for layer in found if f"{layer}.weight" in parameters]


def _unlike(
    network: torch.nn.Module,
    parameters: Mapping[str, Tensor],
    table: Mapping[str, TensorInfo],
    layers: Sequence[str],
    packed: Sequence[str],
) -> str | None:
    """Names the first tensor that a folder lacks, or has and the model has not; None when there is none."""
    lost = [key for key in packed if key not in table]
    written = {id(parameters[key]) for key in table.keys() & parameters.keys()}
    written |= {id(parameters[f"{layer}.weight"]) for layer in layers}
    lost += [key for key, value in parameters.items() if id(value) not in written]
    if lost:
        return f"{lost[0]} is missing."
    known = {*parameters, *packed, *dict(network.named_buffers())}
    unknown = sorted(table.keys() - known)
    return f"{unknown[0]} belongs to no layer of the model." if unknown else None


def _part(info: TensorInfo) -> Any:
    values = read_tensor(info)
    if info.dtype == "I32":
        return values.view("<u4")
    return to_float32(values, info.dtype).reshape(info.shape) if info.dtype in STORAGE else values


def bnb4_gate(folder: Path, reference: Reference, device: str, wanted: BoundConfig) -> Gate:
    """Compares a folder of 4-bit weights with the model it was made from.

    Args:
        folder: As `export.bnb4` writes it.
        reference: The model it was made from.
        device: `cpu` or `cuda`.
        wanted: Bounds that the user set.
    """
    name, bound = f"bnb4_logits:{folder.name}", quantised_bound(_BNB4_KL_NATS, wanted)
    try:
        network = load.load_model(folder, dtype=torch.float32, device=device)
    except MissingExtra as error:
        return Gate(name=name, measured={}, bound=bound, verdict="not_proved", reason=str(error))
    found = logits_of(network, reference.texts)
    difference = compare(reference.texts, reference.logits, found, most_tie_nats=bound["near_tie_nats"])
    return quantised_gate(name, "bnb4", difference, bound, "Take a GGUF of a finer type, export again")
