"""Attention over rows laid end to end, each segment seeing only itself.

A micro-batch is one row of tokens; segments (samples) are neighbours in it. One causal attention call a segment needs
neither padding nor a mask, so nothing leaks and no work is wasted: on two CPU cores it took a fifth of the time of one
call with a dense block mask at 1231 tokens in 8 segments, and less than segments padded into buckets. On a GPU all
segments go into one call of the flash kernel for rows of various lengths, which needs torch 2.11.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

SEGMENTS = "tunerun_segments"
"""Name under which transformers finds `segment_attention`; it has no mask function, so no mask is built."""

# Head widths that the flash kernel of torch computes, and its multiple.
_FLASH_WIDTH, _FLASH_STEP = 256, 8

# torch's flash kernel for CPUs (cpu_flash_attention, FlashAttentionKernel.cpp) takes 32 queries or more at a time and
# compiles its products for each shape that it meets: 64 segments of 53 lengths took 39 to 43 ms the first time and
# 27 again, and with lengths rounded up to this multiple 21 to 24 and 20 ms (one core of a Xeon with AMX).
_TILE_TOKENS = 32

# Query, key and value, as `segment_attention` takes them.
_States = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rule:
    """How scores become weights; see `segment_attention`."""

    dropout: float
    scaling: float | None
    window: int | None
    softcap: float | None


# Lengths change with every batch: a compiled graph must not see them.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def segment_attention(
    module: torch.nn.Module,  # noqa: ARG001 (transformers' interface)
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 (transformers' interface)
    *,
    segment_lengths: tuple[int, ...],
    segment_bounds: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Computes causal attention within each segment.

    Args:
        module: The attention layer that calls.
        query: (1, heads, tokens, head width).
        key: (1, key heads, tokens, head width).
        value: As `key`.
        attention_mask: None.
        segment_lengths: Tokens of each segment, in order; they add up to `tokens`.
        segment_bounds: (segments + 1,), int32, on the device: where each segment starts, and the end. None keeps to
            one call a segment.
        dropout: Share of the attention weights zeroed.
        scaling: Factor of the scores; 1 / sqrt(head width) when None.
        sliding_window: Tokens that a token sees, itself included; None for all before it.
        others: Gemma 2 gives `softcap`: scores s become softcap * tanh(s / softcap). What else models give is not used.

    Returns:
        (1, tokens, heads, head width), and no weights.
    """
    dtype = _computed_in(query)
    states = (query.to(dtype), key.to(dtype), value.to(dtype))
    if sliding_window is not None and max(segment_lengths) <= sliding_window:
        sliding_window = None
    rule = _Rule(dropout=dropout, scaling=scaling, window=sliding_window, softcap=others.get("softcap"))
    plain = not dropout and rule.softcap is None
    if plain and segment_bounds is not None and _flash_takes(*states):
        return _in_one_call(states, segment_lengths, segment_bounds, rule), None
    half = query.device.type == "cpu" and dtype == torch.bfloat16
    if plain and half and sliding_window is None and _same_width(*states):
        found: Tensor = _HalfOnCpu.apply(*states, segment_lengths, scaling)  # type: ignore[no-untyped-call]
        return found, None
    parts = zip(*(torch.split(items, list(segment_lengths), 2) for items in states), strict=True)
    outputs = [_one_segment(part, rule) for part in parts]
    return torch.cat(outputs, 2).transpose(1, 2), None


@contextmanager
def attention_of(model: Any, name: str) -> Iterator[None]:
    """Switches a transformers model to another attention function within the block."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _computed_in(query: Tensor) -> torch.dtype:
    """Returns the number format of the computation: autocast knows the flash kernels' names no more than ours."""
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


def _same_width(query: Tensor, key: Tensor, value: Tensor) -> bool:
    return query.shape[-1] == key.shape[-1] == value.shape[-1]


def _flash_takes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    width = query.shape[-1]
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.bfloat16, torch.float16)
        and _same_width(query, key, value)
        and width <= _FLASH_WIDTH
        and width % _FLASH_STEP == 0
        and {"scale", "window_size"} <= _varlen_parameters()
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


@lru_cache(maxsize=1)
def _varlen_parameters() -> frozenset[str]:
    """Returns what torch's attention over rows of various lengths can be told; nothing when torch has none."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return frozenset()
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def _in_one_call(states: _States, lengths: tuple[int, ...], bounds: Tensor, rule: _Rule) -> Tensor:
    """Computes all segments in one call, shape (1, tokens, heads, head width)."""
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = (items[0].transpose(0, 1) for items in states)
    longest, known = max(lengths), _varlen_parameters()
    options: dict[str, Any] = {
        "scale": rule.scaling,
        "window_size": (-1 if rule.window is None else rule.window - 1, 0),
    }
    # torch 2.11 takes fewer key heads without being told.
    if "enable_gqa" in known:
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    found = varlen_attn(query, key, value, bounds, bounds, longest, longest, **options)
    assert isinstance(found, Tensor), "nothing else was asked for"
    return found[None]


def _one_segment(part: _States, rule: _Rule) -> Tensor:
    query, key, value = part
    length = query.shape[2]
    windowed = rule.window is not None and length > rule.window
    if rule.softcap is not None:
        return _capped(part, rule, rule.softcap)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=_seen(length, rule.window, query.device) if windowed else None,
        dropout_p=rule.dropout,
        is_causal=not windowed,
        scale=rule.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _capped(part: _States, rule: _Rule, softcap: float) -> Tensor:
    """Computes what no fused kernel of torch does: bounded scores (Gemma 2)."""
    query, key, value = part
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, 1) for states in (key, value))
    factor = query.shape[-1] ** -0.5 if rule.scaling is None else rule.scaling
    scores = softcap * torch.tanh((query @ key.transpose(2, 3)) * (factor / softcap))
    seen = _seen(query.shape[2], rule.window, query.device)
    weights = scores.float().masked_fill(~seen, float("-inf")).softmax(-1).to(query.dtype)
    return F.dropout(weights, rule.dropout) @ value


def _seen(length: int, sliding_window: int | None, device: torch.device) -> Tensor:
    """Returns which tokens each token of a segment sees, (length, length), bool."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < (length if sliding_window is None else sliding_window))


class _HalfOnCpu(torch.autograd.Function):
    """Attention in bf16 whose backward pass is computed in float32.

    torch's flash kernel for CPUs takes 2.6 times as long for the gradients in bf16 as in float32 (12.7 and 4.8 ms for
    8 segments of 118 tokens, one core of a Xeon with AMX), while it is faster forward.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], scaling: float | None
    ) -> Tensor:
        """Returns (1, tokens, heads, head width)."""
        found, sums = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format), []
        start = 0
        for length, into in zip(lengths, torch.split(found, list(lengths), 1), strict=True):
            # What follows the segment fills its last tile: no token of the segment sees it.
            tiles = slice(start, start + -(-length // _TILE_TOKENS) * _TILE_TOKENS)
            output, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query[:, :, tiles], key[:, :, tiles], value[:, :, tiles], is_causal=True, scale=scaling
            )
            into.copy_(output[:, :, :length].transpose(1, 2))
            sums.append(log_sums[:, :, :length])
            start += length
        ctx.lengths, ctx.scaling = lengths, scaling
        ctx.save_for_backward(query, key, value, found, *sums)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of query, key and value."""
        query, key, value, found, *sums = ctx.saved_tensors
        states = (grads[0].transpose(1, 2), query, key, value, found.transpose(1, 2))
        parts = zip(*(torch.split(items.float(), list(ctx.lengths), 2) for items in states), strict=True)
        gradients = [torch.empty_like(items) for items in (query, key, value)]
        into = zip(*(torch.split(items, list(ctx.lengths), 2) for items in gradients), strict=True)
        for part, log_sums, slices in zip(parts, sums, into, strict=True):
            computed = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *part, log_sums, 0.0, True, scale=ctx.scaling
            )
            for whole, values in zip(slices, computed, strict=True):
                whole.copy_(values)
        return (*gradients, None, None)


ALL_ATTENTION_FUNCTIONS.register(SEGMENTS, segment_attention)
