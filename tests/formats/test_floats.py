"""bfloat16 and float16 rounding against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tunerun.formats.floats import from_float32, is_finite, to_float32

EDGES = [
    0.0,
    -0.0,
    1.0,
    1.00390625,
    1.01171875,
    3.3895314e38,
    3.4028235e38,
    1e-45,
    -1e-40,
    np.inf,
    -np.inf,
    65519,
    65520,
]


def sample() -> np.ndarray:
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32)
    values = bits.view(np.float32)
    return np.concatenate([values[~np.isnan(values)], np.array(EDGES, np.float32)])


@pytest.mark.parametrize(("name", "dtype"), [("BF16", torch.bfloat16), ("F16", torch.float16)])
def test_rounding_has_the_bits_of_torch(name: str, dtype: torch.dtype) -> None:
    values = sample()
    expected = torch.from_numpy(values).to(dtype).view(torch.int16).numpy().view(np.uint16)
    assert (from_float32(values, name).view(np.uint16) == expected).all()


def test_ties_go_to_even() -> None:
    halfway = np.array([0x3F808000, 0x3F818000], np.uint32).view(np.float32)
    assert from_float32(halfway, "BF16").tolist() == [0x3F80, 0x3F82]


def test_not_a_number_stays_one() -> None:
    loud = np.array([0x7F800001], np.uint32).view(np.float32)
    assert from_float32(loud, "BF16").tolist() == [0x7FC0]


@pytest.mark.parametrize("name", ["BF16", "F16"])
def test_widening_then_rounding_gives_back_every_pattern(name: str) -> None:
    patterns = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    stored = patterns if name == "BF16" else patterns.view(np.float16)
    wide = to_float32(stored, name)
    kept = ~np.isnan(wide)
    assert (from_float32(wide, name).view(np.uint16)[kept] == patterns[kept]).all()


@pytest.mark.parametrize(("name", "value"), [("BF16", np.inf), ("BF16", np.nan), ("F16", 1e6), ("F32", np.nan)])
def test_one_bad_value_is_seen(name: str, value: float) -> None:
    values = np.ones(1000, np.float32)
    assert is_finite(from_float32(values, name), name)
    values[777] = value
    assert not is_finite(from_float32(values, name), name)
