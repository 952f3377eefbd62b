"""PiSSA: training the principal components of a weight (Meng et al. 2024, arXiv 2404.02948).

A weight W is split into W' + s B0 A0, of which W' is frozen and the factors go on from B0, A0. The trained model
W' + s B A is, on the untouched W, the LoRA s [B, -B0] [A; A0] of twice the rank: this is how peft converts it
(`subtract_mutated_init`), and how it is always written here. Such a file also holds all that is needed to go on.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor

_A, _B = ".lora_A.weight", ".lora_B.weight"


def start(adapted: Any, *, iterations: int) -> dict[str, Tensor]:
    """Gives the factors the principal components of the weights, and takes these out of the weights.

    Args:
        adapted: A peft model with a fresh LoRA.
        iterations: Subspace iterations of the fast SVD (Halko et al. 2011, arXiv 0909.4061); 0 takes the exact one.

    Returns:
        The initial factors, by their names in a file.
    """
    name = adapted.active_adapter
    for layer in _layers(adapted):
        weight = layer.get_base_layer().weight.data.float()
        rank, scaling = layer.r[name], layer.scaling[name]
        if iterations:
            left, lengths, right = torch.svd_lowrank(weight, q=rank, niter=iterations)
            right = right.T
        else:
            left, lengths, right = torch.linalg.svd(weight, full_matrices=False)
        root = (lengths[:rank] / scaling).sqrt()
        layer.lora_A[name].weight.data = (root[:, None] * right[:rank]).contiguous()
        layer.lora_B[name].weight.data = (left[:, :rank] * root).contiguous()
    _take_out(adapted)
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return {key: value.detach().clone() for key, value in state.items() if key.endswith((_A, _B))}


def to_lora(weights: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the adapter's tensors as those of a LoRA of the untouched base."""
    converted = dict(weights)
    for name, value in initial.items():
        rows = name.endswith(_A)
        converted[name] = torch.cat([weights[name], value if rows else -value], dim=0 if rows else 1)
    return converted


def to_lora_config(config: LoraConfig) -> LoraConfig:
    """Returns the config that goes with `to_lora`: twice the rank, the same scaling, an ordinary start."""
    doubled = copy.copy(config)
    # alpha / sqrt(rank) keeps its value when alpha grows by sqrt(2).
    factor = math.sqrt(2) if config.use_rslora else 2
    doubled.r, doubled.lora_alpha = 2 * config.r, factor * config.lora_alpha
    doubled.rank_pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
    doubled.alpha_pattern = {name: factor * alpha for name, alpha in config.alpha_pattern.items()}
    doubled.init_lora_weights = True
    return doubled


def resume(adapted: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Goes on from a file that was written through `to_lora`.

    Args:
        adapted: A peft model on the untouched base, with the adapter of half the file's rank.
        tensors: The file's.

    Returns:
        The initial factors.
    """
    initial, trained = dict[str, Tensor](), dict(tensors)
    for name, value in tensors.items():
        if name.endswith((_A, _B)):
            rows = name.endswith(_A)
            now, first = value.chunk(2, dim=0 if rows else 1)
            trained[name], initial[name] = now.contiguous(), (first if rows else -first).contiguous()
    set_peft_model_state_dict(adapted, trained | initial)
    _take_out(adapted)
    set_peft_model_state_dict(adapted, trained)
    return initial


def _take_out(adapted: Any) -> None:
    name = adapted.active_adapter
    for layer in _layers(adapted):
        weight = layer.get_base_layer().weight
        update = layer.scaling[name] * layer.lora_B[name].weight.data @ layer.lora_A[name].weight.data
        weight.data = (weight.data.float() - update).to(weight.dtype)


def _layers(adapted: Any) -> list[LoraLayer]:
    name = adapted.active_adapter
    return [layer for layer in adapted.modules() if isinstance(layer, LoraLayer) and name in layer.lora_A]
