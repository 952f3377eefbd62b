"""How much each input of a model's linear layers matters: its mean square over training tokens.

llama.cpp calls these numbers an importance matrix (`tools/imatrix/imatrix.cpp`) and weighs quantisation errors by them.
Run as a child by the export, which imports no torch, with five arguments: BASE ADAPTER STORE FILE TOKENS.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from tunerun.formats.tokens import TokenStore
from tunerun.models.adapters import load_adapter
from tunerun.models.load import load_model


def measure_importance(model: Any, store: TokenStore, most_tokens: int) -> dict[str, np.ndarray[Any, Any]]:
    """Runs a model over the samples of a token store.

    Args:
        model: A transformers model in float32.
        store: Samples to run it on, from the first.
        most_tokens: To stop after.

    Returns:
        By weight name, such as `model.layers.0.mlp.up_proj.weight`: mean squares, shape (inputs,), float32.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    handles = [
        module.register_forward_pre_hook(partial(_add_squares, sums, counts, f"{name}.weight"))
        for name, module in linear.items()
    ]
    with torch.no_grad():
        for ids in _samples(store, most_tokens):
            model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return {name: (total / counts[name]).float().numpy() for name, total in sums.items()}


def _add_squares(
    sums: dict[str, Tensor], counts: dict[str, int], name: str, _module: nn.Module, inputs: tuple[Tensor, ...]
) -> None:
    rows = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
    squares = (rows * rows).sum(dim=0)
    sums[name] = sums[name] + squares if name in sums else squares
    counts[name] = counts.get(name, 0) + len(rows)


def _samples(store: TokenStore, most_tokens: int) -> Iterator[list[int]]:
    left = most_tokens
    for index in range(len(store)):
        tokens, _, segments = store.row(index)
        for segment in np.unique(segments):
            ids = tokens[segments == segment][:left].tolist()
            if not ids:
                return
            left -= len(ids)
            yield ids


def _main(base: str, adapter: str, store: str, file: str, tokens: str) -> None:
    model = load_model(Path(base), dtype=torch.float32, device="cpu")
    if adapter:
        model = load_adapter(model, Path(adapter), trainable=False).merge_and_unload()
    save_file(measure_importance(model, TokenStore.open(Path(store)), int(tokens)), file)


if __name__ == "__main__":
    _main(*sys.argv[1:])
