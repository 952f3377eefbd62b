"""The mix of tensor types, where llama.cpp's own choice is known (the byte-parity tests cover the rest)."""

from __future__ import annotations

from typing import get_args

from tunerun.config.checks import MEASURED_TYPES
from tunerun.config.schema import GgufType
from tunerun.export.mix import FILE_TYPES, Sizes, choose_types

SIZES = Sizes(layers=24, heads=14, key_value_heads=2, architecture="qwen2")


def shapes(hidden: int = 896, layers: int = 24) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (1000, hidden), "output_norm.weight": (hidden,)}
    for layer in range(layers):
        found |= {f"blk.{layer}.attn_v.weight": (128, hidden), f"blk.{layer}.ffn_down.weight": (hidden, 4864)}
    return found


def test_every_type_that_the_config_accepts_is_known() -> None:
    assert set(FILE_TYPES) == set(get_args(GgufType))
    assert {name for name, kind in FILE_TYPES.items() if kind.needs_importance} == set(MEASURED_TYPES)


def test_qwen2_half_a_billion_falls_back_as_it_does_upstream() -> None:
    """Rows of 896 values are no multiple of 256; Qwen2.5-0.5B's published Q4_K_M has Q5_0 and Q8_0 for them."""
    types = {name: kind.name for name, kind in choose_types(shapes(), "q4_k_m", SIZES).items()}
    assert types["token_embd.weight"] == "Q8_0"
    assert types["output_norm.weight"] == "F32"
    assert types["blk.0.attn_v.weight"] == "Q8_0"
    assert types["blk.3.attn_v.weight"] == "Q5_0"
    assert types["blk.0.ffn_down.weight"] == "Q6_K"
    assert types["blk.3.ffn_down.weight"] == "Q4_K"


def test_more_bits_go_to_the_ends_and_every_third_layer() -> None:
    types = choose_types(shapes(hidden=1024), "q4_k_m", SIZES)
    better = [layer for layer in range(24) if types[f"blk.{layer}.ffn_down.weight"].name == "Q6_K"]
    assert better == [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23]
