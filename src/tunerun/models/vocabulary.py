"""Embeddings that grow for tokens which the tokenizer has and the weights do not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

from tunerun.chat.tokenizer import load_tokenizer

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "lm_head.weight")


@torch.no_grad()
def grow(model: Any, rows: int) -> None:
    """Adds rows to the embedding, and to the head where it is another matrix; they start as the mean of the others.

    The mean puts a new token where the model expects any token (Hewitt 2021, "Initializing New Word Embeddings for
    Pretrained Language Models").

    Args:
        model: A transformers model without adapters.
        rows: Of the embedding afterwards, at least as many as now.
    """
    before = model.get_input_embeddings().weight.shape[0]
    assert rows >= before, f"{rows} rows are fewer than {before}"
    model.resize_token_embeddings(rows, mean_resizing=False)
    for weight in _matrices(model).values():
        weight[before:] = weight[:before].float().mean(0).to(weight.dtype)


def grow_to_tokenizer(model: Any, folder: Path) -> int | None:
    """Gives every token of a folder's tokenizer a row of the embedding.

    Args:
        model: A transformers model without adapters.
        folder: Holds the tokenizer.

    Returns:
        The rows that were there when some were added, else None.
    """
    before: int = model.get_input_embeddings().weight.shape[0]
    wanted = max(load_tokenizer(folder).backend.get_vocab(with_added_tokens=True).values()) + 1
    if wanted <= before:
        return None
    grow(model, wanted)
    print(f"the embedding grows from {before} to {wanted} rows, which start as the mean of the others")
    return before


def grow_to_adapter(model: Any, tensors: Mapping[str, Tensor], config: LoraConfig) -> None:
    """Grows the embedding of a model to that with which an adapter was trained.

    Args:
        model: A transformers model without adapters.
        tensors: The adapter's.
        config: The adapter's.
    """
    wanted = adapter_rows(tensors, config)
    if wanted > model.get_input_embeddings().weight.shape[0]:
        grow(model, wanted)


def adapter_rows(tensors: Mapping[str, Tensor], config: LoraConfig) -> int:
    """Returns how many rows of the embedding an adapter needs; 0 when it trains none.

    Args:
        tensors: The adapter's.
        config: The adapter's.
    """
    whole = [value.shape[0] for name, value in tensors.items() if name.endswith(_EMBEDDINGS)]
    trained = [index + 1 for indices in token_rows(config).values() for index in indices]
    return max([*whole, *trained], default=0)


def token_rows(config: LoraConfig) -> dict[str, list[int]]:
    """Returns the rows that an adapter trains one by one, by the name of the module."""
    rows = config.trainable_token_indices
    if rows is None:
        return {}
    return dict(rows) if isinstance(rows, dict) else {"embed_tokens": list(rows)}


def new_rows(model: Any, before: int, modules_to_save: tuple[str, ...]) -> dict[str, list[int]] | None:
    """Returns what peft has to train for added rows to be learned: the rows of each matrix not trained whole.

    Args:
        model: The grown model.
        before: Rows that it had.
        modules_to_save: Modules trained whole; of two tied ones, either.
    """
    matrices = _matrices(model)
    rows = list(range(before, model.get_input_embeddings().weight.shape[0]))
    if not rows or (len(matrices) == 1 and {*matrices, "lm_head"} & set(modules_to_save)):
        return None
    return {name: rows for name in matrices if name not in modules_to_save} or None


def _matrices(model: Any) -> dict[str, Any]:
    """Returns embedding and head by the last part of their names; tied ones once."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    found = {names[id(embedding)]: embedding.weight}
    if head is not None and head.weight is not embedding.weight:
        found[names[id(head)]] = head.weight
    return found
