"""What quantisation leaves of a weight, against bitsandbytes itself."""

from __future__ import annotations

import pytest
import torch

from tunerun.formats.bitsandbytes import round_trip
from tunerun.plan.steps import Quantisation

functional = pytest.importorskip("bitsandbytes.functional")
# Rows of 96 values, say, are left out: with AVX-512 bitsandbytes 0.50 takes the wrong scales when it reads them back.
SHAPES = [(64, 128), (100, 128), (33, 50), (256, 896)]


def _weight(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.03).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nf4_is_that_of_bitsandbytes(shape: tuple[int, int], double: bool, dtype: torch.dtype) -> None:
    weight = _weight(shape, dtype)
    packed, state = functional.quantize_4bit(weight, compress_statistics=double, quant_type="nf4")
    wanted = functional.dequantize_4bit(packed, state)
    found = torch.from_numpy(round_trip(weight.float().numpy(), Quantisation(bits=4, double=double))).to(dtype)
    if double and dtype == torch.float32:
        # The mean of the scales is a sum whose order torch chooses: it may differ in its last bit.
        torch.testing.assert_close(found, wanted, atol=1e-7, rtol=1e-6)
    else:
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_is_that_of_bitsandbytes(shape: tuple[int, int]) -> None:
    weight = _weight(shape, torch.float32)
    codes, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
    wanted = functional.int8_vectorwise_dequant(codes, scales)
    found = torch.from_numpy(round_trip(weight.numpy(), Quantisation(bits=8, double=False)))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("quantisation", [Quantisation(bits=4, double=True), Quantisation(bits=8, double=False)])
def test_zeros_stay_zero(quantisation: Quantisation) -> None:
    assert not round_trip(torch.zeros(64, 64).numpy(), quantisation).any()
