"""bitsandbytes' quantisation in numpy: what it leaves of a weight, and the tensors that hold it.

NF4 takes blocks of 64 values, divides each by its largest magnitude and keeps the nearest of sixteen numbers; double
quantisation keeps those magnitudes, less their mean, in 8 bits with one scale for 256 of them (Dettmers et al. 2023,
"QLoRA", arXiv 2305.14314, sections 2 and 3). int8 divides each row by its largest magnitude (Dettmers et al. 2022,
"LLM.int8()", arXiv 2208.07339). Constants and order of operations: bitsandbytes 0.50, functional.py and
backends/default/ops.py. The scales are rounded as its CPU kernel does it, by a table of 65536 places: where the exact
CUDA kernel decides otherwise, for about one scale in 700, the other level is as near to a part in 30,000.
"""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tunerun.formats.floats import Array, Float32
from tunerun.formats.safetensors import Slot
from tunerun.plan.steps import Quantisation

# safetensors' and torch's names of the types that weights are used in.
TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

_STATE = "quant_state.bitsandbytes__nf4"
# The longest that Python writes a float: -1.2345678901234567e-308.
_FLOAT_CHARACTERS = 24

Codes = npt.NDArray[np.intp]

_BLOCK, _SCALES_BLOCK = 64, 256
_TABLE_PLACES = 65536
# Smallest divisor: a block of zeros stays zero.
_TINY = np.float32(1e-30)
# The sixteen values of NF4 (QLoRA, appendix E).
_NF4 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip


def round_trip(weight: Float32, quantisation: Quantisation) -> Float32:
    """Returns a weight as it is after quantisation.

    Args:
        weight: Shape (out, in).
        quantisation: What it goes through.
    """
    if quantisation.bits == 8:
        # bitsandbytes takes half precision for the weights of LLM.int8().
        weight = weight.astype(np.float16).astype(np.float32)
        largest = np.abs(weight).max(axis=1, keepdims=True)
        # bitsandbytes divides by 127 as a product with this float32 number (LLM.int8(), equation 4).
        codes = np.rint(weight * (np.float32(1) / np.maximum(largest, _TINY) * np.float32(127)))
        restored: Float32 = codes * largest * np.float32(7.874015718698502e-3)
        return restored
    codes, scales = _quantise(weight.reshape(-1), _NF4, _BLOCK)
    if quantisation.double:
        offset = np.float32(scales.mean(dtype=np.float64))
        scale_codes, scales_of_scales = _quantise(scales - offset, _dynamic_map(), _SCALES_BLOCK, table=True)
        scales = _dequantise(scale_codes, _dynamic_map(), scales_of_scales, _SCALES_BLOCK) + offset
    return _dequantise(codes, _NF4, scales, _BLOCK).reshape(weight.shape)


def packed_slots(name: str, shape: tuple[int, ...], dtype: str, *, double: bool) -> list[Slot]:
    """Returns name, type and shape of the tensors that hold an NF4 weight (bitsandbytes, `QuantState.as_dict`).

    Args:
        name: Of the weight.
        shape: Of the weight.
        dtype: safetensors name of the type that the weight has when it is used.
        double: Whether the scales are quantised too.
    """
    values = math.prod(shape)
    blocks = -(-values // _BLOCK)
    slots: list[Slot] = [
        (name, "U8", (-(-values // 2), 1)),
        (f"{name}.absmax", "U8" if double else "F32", (blocks,)),
        (f"{name}.quant_map", "F32", (16,)),
    ]
    if double:
        slots.append((f"{name}.nested_absmax", "F32", (-(-blocks // _SCALES_BLOCK),)))
        slots.append((f"{name}.nested_quant_map", "F32", (256,)))
    return [*slots, (f"{name}.{_STATE}", "U8", (len(_state(shape, dtype, 0.0 if double else None)),))]


def pack(name: str, weight: Float32, dtype: str, *, double: bool) -> dict[str, Array]:
    """Quantises a weight to NF4 and returns the tensors that hold it, by name.

    Args:
        name: Of the weight.
        weight: Shape (out, in).
        dtype: safetensors name of the type that the weight has when it is used.
        double: Whether the scales are quantised too.
    """
    codes, scales = _quantise(weight.reshape(-1), _NF4, _BLOCK)
    nibbles = np.zeros(-(-len(codes) // 2) * 2, np.uint8)
    nibbles[: len(codes)] = codes
    found: dict[str, Array] = {name: (nibbles[::2] << 4 | nibbles[1::2])[:, None], f"{name}.quant_map": _NF4}
    offset = None
    if double:
        offset = np.float32(scales.mean(dtype=np.float64))
        scale_codes, nested = _quantise(scales - offset, _dynamic_map(), _SCALES_BLOCK, table=True)
        found |= {f"{name}.nested_absmax": nested, f"{name}.nested_quant_map": _dynamic_map()}
        found[f"{name}.absmax"] = scale_codes.astype(np.uint8)
    else:
        found[f"{name}.absmax"] = scales
    state = _state(weight.shape, dtype, None if offset is None else float(offset))
    found[f"{name}.{_STATE}"] = np.frombuffer(state, np.uint8)
    return found


def _state(shape: tuple[int, ...], dtype: str, offset: float | None) -> bytes:
    """Writes what is no tensor as JSON, filled up with spaces to a length that does not depend on the weight."""
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": _BLOCK, "dtype": TORCH_NAMES[dtype], "shape": shape}
    spare = 0
    if offset is not None:
        state |= {"nested_blocksize": _SCALES_BLOCK, "nested_dtype": "float32", "nested_offset": offset}
        spare = _FLOAT_CHARACTERS - len(json.dumps(offset))
    return json.dumps(state).encode() + b" " * spare


def _quantise(values: Float32, levels: Float32, block: int, *, table: bool = False) -> tuple[Codes, Float32]:
    padded = np.zeros(-(-len(values) // block) * block, np.float32)
    padded[: len(values)] = values
    blocks = padded.reshape(-1, block)
    scales = np.abs(blocks).max(axis=1)
    scaled = blocks * (np.float32(1) / np.maximum(scales, _TINY))[:, None]
    if table:
        half = np.float32(_TABLE_PLACES - 1) / np.float32(2)
        scaled = np.floor((scaled + np.float32(1)) * half + np.float32(0.5)) / half - np.float32(1)
    bounds = (levels[:-1] + levels[1:]) / np.float32(2)
    return np.searchsorted(bounds, scaled.reshape(-1)[: len(values)]), scales


def _dequantise(codes: Codes, levels: Float32, scales: Float32, block: int) -> Float32:
    values: Float32 = levels[codes] * np.repeat(scales, block)[: len(codes)]
    return values


@cache
def _dynamic_map() -> Float32:
    """Returns the 256 values of the dynamic 8 bit type (Dettmers 2016, arXiv 1511.04561)."""
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = _evenly(2**exponent + 1)
        means = (edges[:-1] + edges[1:]) / np.float32(2) * np.float32(10.0 ** (exponent - 6))
        values += [*means.tolist(), *(-means).tolist()]
    return np.sort(np.array(values, np.float32))


def _evenly(count: int) -> Float32:
    """Returns numbers from 0.1 to 1 as torch.linspace does: counted from the nearer end, rounded to float32 once."""
    start, end = np.float32(0.1), np.float32(1)
    step = float((end - start) / np.float32(count - 1))
    index = np.arange(count)
    return np.where(index < count // 2, start + step * index, end - step * (count - 1 - index)).astype(np.float32)
