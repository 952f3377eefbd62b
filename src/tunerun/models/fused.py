"""Norms, rotary embeddings and gated activations in one step each, for half precision on a CPU.

transformers spells both out: under autocast, every one of the dozen small operations reads and writes all states,
several of them only to change the number format, and autograd repeats that for the gradients. On one core of a Xeon
with AMX, products of matrices were 14 % of a training step of a small model, and changes of format 25 %. Here the
derivatives are written down, what is computed is float32, and what comes out is what the next product takes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module, Parameter
from transformers.activations import SiLUActivation

_ROTARY = "apply_rotary_pos_emb"
_FUSED = "_tunerun_fused"
_EPSILONS = ("variance_epsilon", "eps")
# Widths of the trial inputs that show whether a model's own function is the known one.
_TRIAL_TOKENS, _TRIAL_WIDTH = 3, 8
_TOLERANCE = 1e-5
# Of each tensor at a time: half a megabyte.
_BLOCK_VALUES = 1 << 18


def fuse(model: Module) -> None:
    """Replaces RMS norms, SwiGLU layers and the rotary embedding where a trial shows that they are the usual ones.

    The replacements compute only under autocast on a CPU; anywhere else they call what they replaced.

    Args:
        model: A transformers model.
    """
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            _fuse_norm(module)
        elif isinstance(getattr(module, "act_fn", None), torch.nn.SiLU | SiLUActivation):
            _fuse_gate(module)
    for name in sorted({type(module).__module__ for module in model.modules()}):
        _fuse_rotary(sys.modules[name])


def _fuse_norm(module: Module) -> None:
    weight = getattr(module, "weight", None)
    epsilon = next((getattr(module, name) for name in _EPSILONS if hasattr(module, name)), None)
    if not isinstance(weight, Parameter) or weight.ndim != 1 or weight.is_meta or not isinstance(epsilon, float):
        return
    kind: Any = type(module)
    trial = torch.linspace(-2, 3, 2 * len(weight), dtype=torch.float32, device=weight.device).view(2, -1)
    with torch.no_grad():
        wanted = kind.forward(module, trial).float()
        for offset in (0.0, 1.0):
            found = _RmsNorm.apply(trial, weight, epsilon, offset, torch.float32)  # type: ignore[no-untyped-call]
            if torch.allclose(found, wanted, atol=_TOLERANCE, rtol=_TOLERANCE):
                module.__class__ = _fused_norm(kind, epsilon, offset)
                return


@cache
def _fused_norm(kind: Any, epsilon: float, offset: float) -> type[Module]:
    """Returns a class of norms like another, for copies of a module take their class along, but not their closures."""

    def forward(self: Any, states: Tensor) -> Tensor:
        if not _computes_half(states):
            plain: Tensor = kind.forward(self, states)
            return plain
        dtype = torch.get_autocast_dtype("cpu")
        found: Tensor = _RmsNorm.apply(states, self.weight, epsilon, offset, dtype)  # type: ignore[no-untyped-call]
        return found

    return _like_class(kind, forward)


def _like_class(kind: Any, forward: Callable[..., Tensor]) -> type[Module]:
    made: type[Module] = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
    return made


def _fuse_gate(module: Module) -> None:
    kind: Any = type(module)
    trial = torch.linspace(-4, 4, 2 * _TRIAL_WIDTH).view(2, -1)
    # The layer's own products are left out: they may be large, and are the same in both.
    parts = {"gate_proj": torch.sin, "up_proj": torch.cos, "down_proj": torch.neg, "act_fn": F.silu}
    try:
        wanted = kind.forward(SimpleNamespace(**parts), trial)
    except (AttributeError, TypeError):
        return
    found = _SwiGlu.apply(trial.sin(), trial.cos()).neg()  # type: ignore[no-untyped-call]
    if torch.allclose(found, wanted, atol=_TOLERANCE):
        module.__class__ = _fused_gate(kind)


@cache
def _fused_gate(kind: Any) -> type[Module]:
    def forward(self: Any, states: Tensor) -> Tensor:
        if not _computes_half(states):
            plain: Tensor = kind.forward(self, states)
            return plain
        found: Tensor = self.down_proj(_SwiGlu.apply(self.gate_proj(states), self.up_proj(states)))  # type: ignore[no-untyped-call]
        return found

    return _like_class(kind, forward)


def _fuse_rotary(module: Any) -> None:
    original = vars(module).get(_ROTARY)
    if original is None or hasattr(original, _FUSED) or not _is_usual(original):
        return

    def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *others: Any, **named: Any) -> Any:
        if others or named or not _computes_half(query):
            return original(query, key, cos, sin, *others, **named)
        return tuple(_Rotation.apply(states, cos, sin) for states in (query, key))  # type: ignore[no-untyped-call]

    setattr(rotate, _FUSED, original)
    vars(module)[_ROTARY] = rotate


def _is_usual(function: Callable[..., Any]) -> bool:
    shape = (1, 2, _TRIAL_TOKENS, _TRIAL_WIDTH)
    query, key = torch.linspace(-1, 1, 48).view(shape), torch.linspace(2, -1, 48).view(shape)
    angles = torch.linspace(0, 3, _TRIAL_TOKENS * _TRIAL_WIDTH // 2).view(1, _TRIAL_TOKENS, -1).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    try:
        wanted = function(query, key, cos, sin)
    except (TypeError, ValueError, RuntimeError):
        # It takes other things: it is not the usual one.
        return False
    found = [_Rotation.apply(states, cos, sin) for states in (query, key)]  # type: ignore[no-untyped-call]
    return all(torch.allclose(ours, theirs, atol=_TOLERANCE) for ours, theirs in zip(found, wanted, strict=True))


def _computes_half(states: Tensor) -> bool:
    return states.device.type == "cpu" and torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


class _RmsNorm(torch.autograd.Function):
    """y = x / sqrt(mean(x^2) + epsilon) * (offset + w) (Zhang and Sennrich 2019, arXiv 1910.07467, equation 4)."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, epsilon: float, offset: float, dtype: torch.dtype) -> Tensor:
        """Returns the normed states of shape (..., width) in a number format."""
        whole, factor = states.float(), weight.float() + offset
        scale = torch.linalg.vector_norm(whole, dim=-1, keepdim=True)
        scale = scale.square_().div_(whole.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(states, factor, scale)
        ctx.weight_dtype = weight.dtype
        found: Tensor = (whole * scale).mul_(factor)
        return found.to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """Returns the gradients of states and weight.

        With s = 1 / sqrt(mean(x^2) + epsilon), f = offset + w and g the gradient of y: that of w is the sum over rows
        of g x s, that of x is s g f - s^3 x mean(g f x).
        """
        states, factor, scale = ctx.saved_tensors
        width = states.shape[-1]
        whole, grad, scales = states.float().view(-1, width), grads[0].float().reshape(-1, width), scale.view(-1)
        product = grad * whole
        weight_grad = (scales @ product).to(ctx.weight_dtype) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, weight_grad, None, None, None
        pull = (product @ factor).mul_(scales.pow(3)).div_(-width)
        found = (grad * factor).mul_(scales[:, None]).addcmul_(whole, pull[:, None])
        return found.view_as(states).to(states.dtype), weight_grad, None, None, None


class _SwiGlu(torch.autograd.Function):
    """y = silu(gate) * up (Shazeer 2020, "GLU Variants Improve Transformer", arXiv 2002.05202, equation 6).

    A few rows at a time, so that what lies between stays in the cache.
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """Takes two tensors of shape (..., width)."""
        ctx.save_for_backward(gate, up)
        found = _like(gate)
        for gates, ups, into in _blocks(gate, up, found):
            torch.mul(F.silu(gates), ups, out=into)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the gradients of gate and up."""
        gate, up = ctx.saved_tensors
        to_gate, to_up = _like(gate), _like(up)
        for gates, ups, grad, into_gate, into_up in _blocks(gate, up, grads[0], to_gate, to_up):
            torch.mul(grad, F.silu(gates), out=into_up)
            torch.ops.aten.silu_backward(grad * ups, gates, grad_input=into_gate)
        return to_gate, to_up


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yields the same few rows of each of several tensors of one shape."""
    width = tensors[0].shape[-1]
    rows = max(1, _BLOCK_VALUES // width)
    yield from zip(*(torch.split(tensor.reshape(-1, width), rows) for tensor in tensors), strict=True)


class _Rotation(torch.autograd.Function):
    """Turns each pair (i, i + width / 2) of the states by an angle (Su et al. 2021, "RoFormer", section 3.4.2)."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Turns states of shape (rows, heads, tokens, width) by angles whose cos and sin are (rows, tokens, width)."""
        half = states.shape[-1] // 2
        cos, sin = (values[:, None, :, :half].float() for values in (cos, sin))
        ctx.save_for_backward(cos, sin)
        return _turned(states, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Turns the gradient back."""
        cos, sin = ctx.saved_tensors
        return _turned(grads[0], cos, -sin), None, None


def _turned(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    whole = states.float()
    found = torch.empty_like(whole)
    first, second = whole.chunk(2, -1)
    to_first, to_second = found.chunk(2, -1)
    torch.mul(first, cos, out=to_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=to_second).addcmul_(first, sin)
    return found.to(states.dtype)
