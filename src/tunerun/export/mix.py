"""Which ggml type each tensor gets in a file of a given type: llama.cpp's mix.

The rules are those of llama.cpp's `src/llama-quant.cpp` (`llama_tensor_get_type_impl`, `tensor_type_fallback`) for
dense models without an importance matrix, and of its converter for the float types.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tunerun.formats.ggml import FLOAT_TYPES, TYPES, TensorType

OUTPUT = "output.weight"
TOKENS = "token_embd.weight"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileType:
    """A kind of GGUF file."""

    number: int
    """`general.file_type`: llama.cpp's `enum llama_ftype`."""
    base: str
    """The type of tensors that no rule is about."""


FILE_TYPES = {
    "f32": FileType(number=0, base="F32"),
    "f16": FileType(number=1, base="F16"),
    "q4_0": FileType(number=2, base="Q4_0"),
    "q4_1": FileType(number=3, base="Q4_1"),
    "q8_0": FileType(number=7, base="Q8_0"),
    "q5_0": FileType(number=8, base="Q5_0"),
    "q5_1": FileType(number=9, base="Q5_1"),
    "q2_k": FileType(number=10, base="Q2_K"),
    "q3_k_s": FileType(number=11, base="Q3_K"),
    "q3_k_m": FileType(number=12, base="Q3_K"),
    "q3_k_l": FileType(number=13, base="Q3_K"),
    "q4_k_s": FileType(number=14, base="Q4_K"),
    "q4_k_m": FileType(number=15, base="Q4_K"),
    "q5_k_s": FileType(number=16, base="Q5_K"),
    "q5_k_m": FileType(number=17, base="Q5_K"),
    "q6_k": FileType(number=18, base="Q6_K"),
    "bf16": FileType(number=32, base="BF16"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What the rules depend on besides names and shapes."""

    layers: int
    heads: int
    key_value_heads: int

    @property
    def group(self) -> int:
        """Query heads for each key/value head."""
        return self.heads // self.key_value_heads


def choose_types(shapes: Mapping[str, tuple[int, ...]], file_type: str, sizes: Sizes) -> dict[str, TensorType]:
    """Chooses the type of every tensor of a file.

    Args:
        shapes: GGUF name and shape (outermost axis first) of every tensor.
        file_type: A key of `FILE_TYPES`.
        sizes: Of the model.
    """
    base = FILE_TYPES[file_type].base
    tied = OUTPUT not in shapes
    types = {}
    # Layer by layer: "the first two attn_v" counts the tensors met, which for whole models is the layer.
    for name, shape in shapes.items():
        if len(shape) < 2 or not name.endswith("weight") or name.endswith("_norm.weight"):
            types[name] = TYPES["F32"]
        elif base in FLOAT_TYPES:
            types[name] = TYPES[base]
        elif name == OUTPUT or (tied and name == TOKENS):
            types[name] = _fit(_output_type(base, shape[-1]), shape[-1])
        else:
            types[name] = _fit(_layer_type(name, file_type, base, sizes), shape[-1])
    return types


def _output_type(base: str, columns: int) -> str:
    return "Q8_0" if base == "Q8_0" or columns % TYPES[base].block_values else "Q6_K"


def _layer_type(name: str, file_type: str, base: str, sizes: Sizes) -> str:
    match = re.fullmatch(r"blk\.(\d+)\.(attn_v|attn_output|ffn_down)\.weight", name)
    if match is None:
        return base
    rule = _RULES.get((file_type, match[2]))
    chosen = rule(int(match[1]), sizes) if rule else base
    # "70B": eight query heads share an attn_v there, so that more bits for it cost little.
    if match[2] == "attn_v" and sizes.layers == 80 and sizes.group > 1 and chosen in ("Q3_K", "Q4_K"):
        return "Q5_K"
    return chosen


def _more_bits(layer: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third of the others."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _always(kind: str) -> Callable[[int, Sizes], str]:
    return lambda _layer, _sizes: kind


def _six_bits_or(kind: str) -> Callable[[int, Sizes], str]:
    return lambda layer, sizes: "Q6_K" if _more_bits(layer, sizes.layers) else kind


_RULES: dict[tuple[str, str], Callable[[int, Sizes], str]] = {
    ("q2_k", "attn_v"): lambda _layer, sizes: "Q4_K" if sizes.group >= 4 else "Q3_K",
    ("q2_k", "attn_output"): _always("Q3_K"),
    ("q2_k", "ffn_down"): _always("Q3_K"),
    ("q3_k_m", "attn_v"): lambda layer, _sizes: "Q5_K" if layer < 2 else "Q4_K",
    ("q3_k_m", "attn_output"): _always("Q4_K"),
    ("q3_k_m", "ffn_down"): lambda layer, sizes: "Q5_K" if layer < sizes.layers // 16 else "Q4_K",
    ("q3_k_l", "attn_v"): _always("Q5_K"),
    ("q3_k_l", "attn_output"): _always("Q5_K"),
    ("q3_k_l", "ffn_down"): _always("Q5_K"),
    ("q4_k_s", "attn_v"): lambda layer, _sizes: "Q5_K" if layer < 4 else "Q4_K",
    ("q4_k_s", "ffn_down"): lambda layer, sizes: "Q5_K" if layer < sizes.layers // 8 else "Q4_K",
    ("q4_k_m", "attn_v"): _six_bits_or("Q4_K"),
    ("q4_k_m", "ffn_down"): _six_bits_or("Q4_K"),
    ("q5_k_m", "attn_v"): _six_bits_or("Q5_K"),
    ("q5_k_m", "ffn_down"): _six_bits_or("Q5_K"),
}

# For rows that are no multiple of the block: a type with blocks of 32.
_SMALLER_BLOCKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def _fit(kind: str, columns: int) -> TensorType:
    if columns % TYPES[kind].block_values == 0:
        return TYPES[kind]
    smaller = TYPES[_SMALLER_BLOCKS.get(kind, kind)]
    return smaller if columns % smaller.block_values == 0 else TYPES["F16"]
