"""ggml's tensor types, with the standard library alone.

Types and block sizes: llama.cpp, `ggml/include/ggml.h` and `ggml/src/ggml-common.h`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorType:
    """How ggml stores a tensor: rows of blocks."""

    name: str
    number: int
    """Of `enum ggml_type`."""
    block_values: int
    block_bytes: int

    def row_bytes(self, values: int) -> int:
        """Size of a row of so many values."""
        assert values % self.block_values == 0, f"{values} values in blocks of {self.block_values}"
        return values // self.block_values * self.block_bytes


def _type(name: str, number: int, block_values: int, block_bytes: int) -> tuple[str, TensorType]:
    return name, TensorType(name=name, number=number, block_values=block_values, block_bytes=block_bytes)


TYPES = dict(
    (
        _type("F32", 0, 1, 4),
        _type("F16", 1, 1, 2),
        _type("BF16", 30, 1, 2),
        _type("Q4_0", 2, 32, 18),
        _type("Q4_1", 3, 32, 20),
        _type("Q5_0", 6, 32, 22),
        _type("Q5_1", 7, 32, 24),
        _type("Q8_0", 8, 32, 34),
        _type("Q2_K", 10, 256, 84),
        _type("Q3_K", 11, 256, 110),
        _type("Q4_K", 12, 256, 144),
        _type("Q5_K", 13, 256, 176),
        _type("Q6_K", 14, 256, 210),
        _type("IQ1_S", 19, 256, 50),
        _type("IQ1_M", 29, 256, 56),
        _type("IQ2_XXS", 16, 256, 66),
        _type("IQ2_XS", 17, 256, 74),
        _type("IQ2_S", 22, 256, 82),
        _type("IQ3_XXS", 18, 256, 98),
        _type("IQ3_S", 21, 256, 110),
        _type("IQ4_NL", 20, 32, 18),
        _type("IQ4_XS", 23, 256, 136),
        _type("TQ1_0", 34, 256, 54),
        _type("TQ2_0", 35, 256, 66),
    )
)
FLOAT_TYPES = ("F32", "F16", "BF16")
