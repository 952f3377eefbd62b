from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tunerun.models import fused
from tunerun.models.attention import SEGMENTS

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
LENGTHS = (40, 25)
# What is the usual one in each architecture: norm, gated activation, rotary embedding.
KINDS = {
    "qwen2": (True, True, True),
    "qwen3": (True, True, True),
    "llama": (True, True, True),
    "mistral": (True, True, True),
    "gemma": (True, False, True),
    "phi3": (True, False, True),
}


def build(kind: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **SHAPE, head_dim=16)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=SEGMENTS)
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms begin as ones or zeros, which would hide their part.
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def learned(model: Any, *, half: bool) -> tuple[Tensor, Tensor]:
    """Returns logits and gradients."""
    ids = torch.arange(sum(LENGTHS))[None] * 7 % 320
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits = model(input_ids=ids, position_ids=positions, segment_lengths=LENGTHS, use_cache=False).logits.float()
    F.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()
    return logits.detach(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.fixture
def plain_rotary(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Takes the replacement of the rotary embedding away again, which all models of a kind share."""

    def reset(model: Any) -> None:
        module = sys.modules[type(model).__module__]
        function = vars(module)["apply_rotary_pos_emb"]
        monkeypatch.setattr(module, "apply_rotary_pos_emb", vars(function).get("_tunerun_fused", function))

    return reset


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_as_near_to_float32_as_it_was(kind: str, plain_rotary: Callable[[Any], None]) -> None:
    model = build(kind)
    plain_rotary(model)
    wanted, before = learned(model, half=False), learned(model, half=True)
    fused.fuse(model)
    after = learned(model, half=True)
    assert not torch.equal(after[1], before[1])
    for now, then, exact in zip(after, before, wanted, strict=True):
        assert distance(now, exact) < 1.15 * distance(then, exact)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_the_usual_one_is_replaced(kind: str, plain_rotary: Callable[[Any], None]) -> None:
    model = build(kind)
    plain_rotary(model)
    layer, module = model.model.layers[0], sys.modules[type(model).__module__]
    before = (type(layer.input_layernorm), type(layer.mlp), vars(module)["apply_rotary_pos_emb"])
    fused.fuse(model)
    after = (type(layer.input_layernorm), type(layer.mlp), vars(module)["apply_rotary_pos_emb"])
    assert tuple(now is not then for now, then in zip(after, before, strict=True)) == KINDS[kind]


def test_float32_keeps_its_bits(plain_rotary: Callable[[Any], None]) -> None:
    model = build("qwen3")
    plain_rotary(model)
    before = learned(model, half=False)
    fused.fuse(model)
    after = learned(model, half=False)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


def test_a_copy_has_weights_of_its_own() -> None:
    model = build("qwen2")
    fused.fuse(model)
    twin = copy.deepcopy(model)
    before = learned(model, half=True)[0]
    with torch.no_grad():
        twin.model.norm.weight.mul_(2)
    assert torch.equal(learned(model, half=True)[0], before)
    assert not torch.equal(learned(twin, half=True)[0], before)


def test_the_derivatives_are_those_that_autograd_finds() -> None:
    torch.manual_seed(0)
    states, weight = torch.randn(3, 5, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    gate, up = torch.randn(3, 7, requires_grad=True), torch.randn(3, 7, requires_grad=True)
    scale = (states.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    cases = [
        (
            fused._RmsNorm.apply(states, weight, 1e-6, 1.0, torch.float32),
            states * scale * (1 + weight),
            (states, weight),
        ),
        (fused._SwiGlu.apply(gate, up), F.silu(gate) * up, (gate, up)),
    ]
    for found, wanted, inputs in cases:
        torch.testing.assert_close(found, wanted)
        pull = torch.randn_like(wanted)
        for ours, theirs in zip(
            torch.autograd.grad(found, inputs, pull), torch.autograd.grad(wanted, inputs, pull), strict=True
        ):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_wide_layers_are_computed_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, up, pull = torch.randn(3, 10, 7)
    whole = fused._SwiGlu.apply(gate, up)
    monkeypatch.setattr(fused, "_BLOCK_VALUES", 3 * 7)
    gate.requires_grad_(True)
    up.requires_grad_(True)
    found = fused._SwiGlu.apply(gate, up)
    torch.testing.assert_close(found, whole)
    wanted = torch.autograd.grad(F.silu(gate) * up, (gate, up), pull)
    for ours, theirs in zip(torch.autograd.grad(found, (gate, up), pull), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
