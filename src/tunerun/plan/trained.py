"""Which weights a method trains, counted from a model's sizes."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tunerun.plan.shape import Linear, Sizes

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_LAYER = re.compile(r"layers\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Frozen:
    """What freezing leaves to train."""

    parameters: int
    """Trainable weights."""
    layers: int
    """Decoder layers that gradients pass through."""


def linears(size: Sizes) -> Iterator[tuple[str, Linear]]:
    """Yields the linear layers of all decoder layers by the names transformers gives them."""
    for layer in range(size.layers):
        for name, linear in size.linears.items():
            block = "self_attn" if name in _ATTENTION else "mlp"
            yield f"model.layers.{layer}.{block}.{name}", linear


def rank_of(module: str, patterns: Mapping[str, int], default: int) -> int:
    """Returns the rank of a module: the first pattern that matches the end of its name, as in peft."""
    for pattern, rank in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return rank
    return default


def frozen(size: Sizes, *, layers: int, patterns: tuple[str, ...]) -> Frozen:
    """Counts what `method=freeze` trains.

    Args:
        size: Of the model.
        layers: Number of last decoder layers trained.
        patterns: Shell patterns of further weights' names.
    """
    first = size.layers - layers
    parameters, lowest = layers * size.layer_parameters, first
    for name, count in weights(size):
        match = _LAYER.search(name)
        layer = int(match[1]) if match else None
        if (layer is None or layer < first) and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            parameters += count
            if layer is not None or "embed" in name:
                lowest = min(lowest, layer or 0)
    return Frozen(parameters=parameters, layers=size.layers - lowest)


def weights(size: Sizes) -> Iterator[tuple[str, int]]:
    """Yields the name that transformers gives each weight, and how many numbers it has; a shared one once."""
    yield "model.embed_tokens.weight", size.embedding_parameters
    for name, linear in linears(size):
        yield f"{name}.weight", linear.parameters
        if name.rpartition(".")[2] in size.biased:
            yield f"{name}.bias", linear.outputs
    for layer in range(size.layers):
        for norm in size.norms:
            yield f"model.layers.{layer}.{norm}.weight", size.hidden
        for norm in size.head_norms:
            yield f"model.layers.{layer}.self_attn.{norm}.weight", size.head_dim
    yield "model.norm.weight", size.hidden
    if not size.tied_embeddings:
        yield "lm_head.weight", size.embedding_parameters
