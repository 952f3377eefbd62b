"""compressed-tensors' packings, against torch's FP8 and codes packed by hand."""

from __future__ import annotations

import numpy as np
import torch

from tunerun.formats.compressed import unpack_fp8, unpack_packed


def test_every_fp8_code_has_the_value_that_torch_gives_it() -> None:
    codes = torch.arange(256, dtype=torch.uint8).reshape(2, 128)
    scale = torch.tensor([[0.5], [3.0]])
    wanted = (codes.view(torch.float8_e4m3fn).float() * scale).numpy()
    np.testing.assert_array_equal(unpack_fp8({"weight": codes.numpy(), "weight_scale": scale.numpy()}), wanted)


def test_codes_of_four_bits_are_shifted_and_scaled_by_group() -> None:
    codes = np.random.default_rng(0).integers(0, 16, (6, 64))
    words = sum(codes.reshape(6, 8, 8)[..., place].astype(np.uint32) << np.uint32(4 * place) for place in range(8))
    scales = np.random.default_rng(1).random((6, 2)).astype(np.float32)
    found = unpack_packed({"weight_packed": words, "weight_scale": scales, "weight_shape": np.array([6, 64])})
    np.testing.assert_array_equal(found, (codes - 8).astype(np.float32) * np.repeat(scales, 32, axis=1))
