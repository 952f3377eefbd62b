"""Attention over rows laid end to end, each segment seeing only itself.

A micro-batch is one row of tokens; segments (samples) are neighbours in it. One causal attention call a segment needs
neither padding nor a mask, so nothing leaks and no work is wasted: on two CPU cores it took a fifth of the time of one
call with a dense block mask at 1231 tokens in 8 segments, and less than segments padded into buckets.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

SEGMENTS = "tunerun_segments"
"""Name under which transformers finds `segment_attention`; it has no mask function, so no mask is built."""


def segment_attention(
    module: torch.nn.Module,  # noqa: ARG001 (transformers' interface)
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 (transformers' interface)
    *,
    segment_lengths: tuple[int, ...],
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Computes causal attention within each segment.

    Args:
        module: The attention layer that calls.
        query: (1, heads, tokens, head width).
        key: (1, key heads, tokens, head width).
        value: As `key`.
        attention_mask: None.
        segment_lengths: Tokens of each segment, in order; they add up to `tokens`.
        dropout: Share of the attention weights zeroed.
        scaling: Factor of the scores; 1 / sqrt(head width) when None.
        sliding_window: Tokens that a token sees, itself included; None for all before it.

    Returns:
        (1, tokens, heads, head width), and no weights.
    """
    lengths = list(segment_lengths)
    parts = zip(*(torch.split(states, lengths, 2) for states in (query, key, value)), strict=True)
    outputs = []
    for segment_query, segment_key, segment_value in parts:
        length = segment_query.shape[2]
        windowed = sliding_window is not None and length > sliding_window
        outputs.append(
            F.scaled_dot_product_attention(
                segment_query,
                segment_key,
                segment_value,
                attn_mask=_window(length, sliding_window, query.device) if windowed else None,
                dropout_p=dropout,
                is_causal=not windowed,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
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


def _window(length: int, sliding_window: int | None, device: torch.device) -> Tensor:
    assert sliding_window is not None
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < sliding_window)


ALL_ATTENTION_FUNCTIONS.register(SEGMENTS, segment_attention)
