"""Which ggml type each tensor gets in a file of a given type: llama.cpp's mix.

The rules are those of llama.cpp's `src/llama-quant.cpp` (`llama_tensor_get_type_impl`, `tensor_type_fallback`,
`tensor_requires_imatrix`) for dense models, and of its converter for the float types.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tunerun.formats.ggml_types import FLOAT_TYPES, TYPES, TensorType
from tunerun.formats.gguf_header import TOKEN_EMBEDDING

OUTPUT = "output.weight"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileType:
    """A kind of GGUF file."""

    number: int
    """`general.file_type`: llama.cpp's `enum llama_ftype`."""
    base: str
    """The type of tensors that no rule is about."""
    embedding: str = ""
    """The type of the embedding, where it is another."""
    output: str = "Q6_K"
    """The type of the output head, and of an embedding that is also the head."""
    needs_importance: bool = False
    """Whether llama.cpp refuses to write it without an importance matrix."""

    @property
    def uses_importance(self) -> bool:
        """Whether it has so few bits (4 at most) that a matrix pays."""
        return self.base.startswith(("Q2", "Q3", "Q4", "IQ"))


FILE_TYPES = {
    "f32": FileType(number=0, base="F32"),
    "f16": FileType(number=1, base="F16"),
    "q4_0": FileType(number=2, base="Q4_0"),
    "q4_1": FileType(number=3, base="Q4_1"),
    "q8_0": FileType(number=7, base="Q8_0", output="Q8_0"),
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
    "iq2_xxs": FileType(number=19, base="IQ2_XXS", embedding="Q2_K", output="Q5_K", needs_importance=True),
    "iq2_xs": FileType(number=20, base="IQ2_XS", embedding="Q2_K", output="Q5_K", needs_importance=True),
    "q2_k_s": FileType(number=21, base="Q2_K", needs_importance=True),
    "iq3_xs": FileType(number=22, base="IQ3_S", needs_importance=True),
    "iq3_xxs": FileType(number=23, base="IQ3_XXS", embedding="IQ3_S", output="Q5_K", needs_importance=True),
    "iq1_s": FileType(number=24, base="IQ1_S", embedding="Q2_K", output="Q5_K", needs_importance=True),
    "iq4_nl": FileType(number=25, base="IQ4_NL"),
    "iq3_s": FileType(number=26, base="IQ3_S"),
    "iq3_m": FileType(number=27, base="IQ3_S"),
    "iq2_s": FileType(number=28, base="IQ2_XS", embedding="IQ3_S", output="Q5_K", needs_importance=True),
    "iq2_m": FileType(number=29, base="IQ2_S", embedding="IQ3_S", output="Q5_K", needs_importance=True),
    "iq4_xs": FileType(number=30, base="IQ4_XS"),
    "iq1_m": FileType(number=31, base="IQ1_M", embedding="Q2_K", output="Q5_K", needs_importance=True),
    "bf16": FileType(number=32, base="BF16"),
    "tq1_0": FileType(number=36, base="TQ1_0", embedding="Q4_K"),
    "tq2_0": FileType(number=37, base="TQ2_0", embedding="Q4_K"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What the rules depend on besides names and shapes."""

    layers: int
    heads: int
    key_value_heads: int
    architecture: str
    """llama.cpp's name."""
    importance: bool = False
    """Whether there is an importance matrix."""

    @property
    def group(self) -> int:
        """Query heads for each key/value head."""
        return self.heads // self.key_value_heads

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp takes the model for one of 70 billion parameters."""
        return self.layers == 80 and (self.architecture == "qwen2" or (self.architecture == "llama" and self.group > 1))


def choose_types(shapes: Mapping[str, tuple[int, ...]], file_type: str, sizes: Sizes) -> dict[str, TensorType]:
    """Chooses the type of every tensor of a file.

    Args:
        shapes: GGUF name and shape (outermost axis first) of every tensor.
        file_type: A key of `FILE_TYPES`.
        sizes: Of the model.
    """
    facts = FILE_TYPES[file_type]
    tied = OUTPUT not in shapes
    types = {}
    # Layer by layer: "the first two attn_v" counts the tensors met, which for whole models is the layer.
    for name, shape in shapes.items():
        if len(shape) < 2 or not name.endswith("weight") or name.endswith("_norm.weight"):
            types[name] = TYPES["F32"]
        elif facts.base in FLOAT_TYPES:
            types[name] = TYPES[facts.base]
        elif name == OUTPUT or (tied and name == TOKEN_EMBEDDING):
            fits = shape[-1] % TYPES[facts.base].block_values == 0
            types[name] = _fit(facts.output if fits else "Q8_0", shape[-1])
        elif name == TOKEN_EMBEDDING:
            types[name] = _fit(facts.embedding or facts.base, shape[-1])
        else:
            types[name] = _fit(_layer_type(name, file_type, facts.base, sizes), shape[-1])
    return types


def _layer_type(name: str, file_type: str, base: str, sizes: Sizes) -> str:
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if match is None:
        return base
    # To the rules a fused query, key and value is a value.
    part = "attn_v" if match[2] == "attn_qkv" else match[2]
    rule = _RULES.get((file_type, part))
    chosen = rule(int(match[1]), sizes) if rule else base
    # Eight query heads share an attn_v there, so that more bits for it cost little.
    if part == "attn_v" and sizes.is_70b and chosen in ("Q3_K", "Q4_K") and not file_type.startswith(("iq1", "iq2")):
        return "Q5_K"
    return chosen


Rule = Callable[[int, Sizes], str]


def _always(kind: str) -> Rule:
    return lambda _layer, _sizes: kind


def _first(layers: int, kind: str, rest: str) -> Rule:
    return lambda layer, _sizes: kind if layer < layers else rest


def _first_part(fraction: int, kind: str, rest: str) -> Rule:
    return lambda layer, sizes: kind if layer < sizes.layers // fraction else rest


def _shared(kind: str, rest: str) -> Rule:
    """Where four or more query heads share a value."""
    return lambda _layer, sizes: kind if sizes.group >= 4 else rest


def _middle(kind: str, rest: str) -> Rule:
    return lambda layer, sizes: kind if sizes.layers // 8 <= layer < 7 * sizes.layers // 8 else rest


def _six_bits_or(kind: str) -> Rule:
    return lambda layer, sizes: "Q6_K" if _more_bits(layer, sizes.layers) else kind


def _unless_measured(rule: Rule, kind: str) -> Rule:
    """Where there is no importance matrix the rule, else a type."""
    return lambda layer, sizes: kind if sizes.importance else rule(layer, sizes)


def _more_bits(layer: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third of the others."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


_RULES: dict[tuple[str, str], Rule] = {
    ("q2_k", "attn_v"): _shared("Q4_K", "Q3_K"),
    ("q2_k", "attn_output"): _always("Q3_K"),
    ("q2_k", "ffn_down"): _always("Q3_K"),
    ("q2_k_s", "attn_v"): _shared("Q4_K", "Q2_K"),
    ("q2_k_s", "ffn_down"): _first_part(8, "Q4_K", "Q2_K"),
    ("q3_k_m", "attn_v"): _first(2, "Q5_K", "Q4_K"),
    ("q3_k_m", "attn_output"): _always("Q4_K"),
    ("q3_k_m", "ffn_down"): _first_part(16, "Q5_K", "Q4_K"),
    ("q3_k_l", "attn_v"): _always("Q5_K"),
    ("q3_k_l", "attn_output"): _always("Q5_K"),
    ("q3_k_l", "ffn_down"): _always("Q5_K"),
    ("q4_k_s", "attn_v"): _first(4, "Q5_K", "Q4_K"),
    ("q4_k_s", "ffn_down"): _first_part(8, "Q5_K", "Q4_K"),
    ("q4_k_m", "attn_v"): _six_bits_or("Q4_K"),
    ("q4_k_m", "ffn_down"): _six_bits_or("Q4_K"),
    ("q5_k_m", "attn_v"): _six_bits_or("Q5_K"),
    ("q5_k_m", "ffn_down"): _six_bits_or("Q5_K"),
    # With a matrix, the first layers of these go wrong.
    ("q4_0", "ffn_down"): lambda layer, sizes: "Q4_1" if sizes.importance and layer < sizes.layers // 8 else "Q4_0",
    ("q5_0", "ffn_down"): lambda layer, sizes: "Q5_1" if sizes.importance and layer < sizes.layers // 8 else "Q5_0",
    ("iq4_nl", "attn_v"): _shared("Q5_K", "IQ4_NL"),
    ("iq4_nl", "ffn_down"): _unless_measured(_first_part(8, "Q5_K", "IQ4_NL"), "IQ4_NL"),
    ("iq4_xs", "attn_v"): _shared("Q5_K", "IQ4_XS"),
    ("iq4_xs", "ffn_down"): _unless_measured(_first_part(8, "Q5_K", "IQ4_XS"), "IQ4_XS"),
    ("iq3_s", "attn_v"): _shared("Q4_K", "IQ3_S"),
    ("iq3_m", "attn_v"): _always("Q4_K"),
    ("iq3_m", "attn_output"): _always("Q4_K"),
    ("iq3_m", "ffn_down"): _first_part(8, "Q4_K", "IQ3_S"),
    ("iq3_xs", "attn_v"): _shared("Q4_K", "IQ3_S"),
    ("iq3_xs", "attn_q"): _always("IQ3_XXS"),
    ("iq3_xs", "attn_k"): _always("IQ3_XXS"),
    ("iq3_xs", "ffn_gate"): _middle("IQ3_XXS", "IQ3_S"),
    ("iq3_xs", "ffn_up"): _middle("IQ3_XXS", "IQ3_S"),
    ("iq3_xxs", "attn_v"): _shared("Q4_K", "IQ3_XXS"),
    ("iq3_xxs", "attn_q"): _always("IQ2_S"),
    ("iq3_xxs", "attn_k"): _always("IQ2_S"),
    ("iq3_xxs", "attn_output"): _always("IQ3_S"),
    **{
        (kind, part): rule
        for kind, base, value, output in (
            ("iq1_s", "IQ1_S", "Q2_K", "IQ2_XXS"),
            ("iq1_m", "IQ1_M", "Q2_K", "IQ2_XXS"),
            ("iq2_xxs", "IQ2_XXS", "Q2_K", "IQ2_XXS"),
            ("iq2_xs", "IQ2_XS", "Q2_K", "IQ2_XS"),
            ("iq2_s", "IQ2_XS", "IQ3_S", "IQ3_S"),
            ("iq2_m", "IQ2_S", "IQ3_S", "IQ3_S"),
        )
        for part, rule in (
            ("attn_v", _shared("Q4_K", value)),
            ("attn_output", _always(output)),
            ("ffn_down", _first_part(8, value, base)),
        )
    },
}

# For rows that are no multiple of the block: a type with blocks of 32.
_SMALLER_BLOCKS = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
    "IQ1_S": "IQ4_NL", "IQ1_M": "IQ4_NL", "IQ2_XXS": "IQ4_NL", "IQ2_XS": "IQ4_NL", "IQ2_S": "IQ4_NL",
    "IQ3_XXS": "IQ4_NL", "IQ3_S": "IQ4_NL", "IQ4_XS": "IQ4_NL",
}  # fmt: skip


def _fit(kind: str, columns: int) -> TensorType:
    if columns % TYPES[kind].block_values == 0:
        return TYPES[kind]
    smaller = TYPES[_SMALLER_BLOCKS.get(kind, kind)]
    return smaller if columns % smaller.block_values == 0 else TYPES["F16"]
