"""Weights as GPTQ checkpoints hold them (AutoGPTQ's first format, `checkpoint_format: gptq`), in numpy.

`qweight` packs codes along the inputs and `qzeros` along the outputs, into int32 from the lowest bits up; the zero
points are stored less one. A weight is (code - zero) * scale of its group, and `g_idx` names each input's group
(Frantar et al. 2022, "GPTQ", arXiv 2210.17323; AutoGPTQ, nn_modules/qlinear).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tunerun.formats.floats import Float32

_WORD_BITS = 32
PARTS = ("qweight", "qzeros", "scales", "g_idx")

Words = npt.NDArray[Any]


def unpack(parts: Mapping[str, Words], bits: int) -> Float32:
    """Returns a weight, of shape (out, in).

    Args:
        parts: `qweight` (in * bits / 32, out) and `qzeros` (groups, out * bits / 32) as uint32, `scales`
            (groups, out) as float32 and `g_idx` (in,).
        bits: Of a code: 2, 4 or 8.
    """
    codes = _codes(parts["qweight"].T, bits).T
    zeros = _codes(parts["qzeros"], bits) + 1
    groups = parts["g_idx"].astype(np.intp)
    weight: Float32 = (codes.astype(np.float32) - zeros[groups].astype(np.float32)) * parts["scales"][groups]
    return np.ascontiguousarray(weight.T)


def _codes(words: Words, bits: int) -> Words:
    """Unpacks along the last axis."""
    shifts = np.arange(0, _WORD_BITS, bits, dtype=np.uint32)
    codes = (words[..., None] >> shifts) & np.uint32(2**bits - 1)
    return codes.reshape(*words.shape[:-1], -1)
