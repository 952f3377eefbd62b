"""Embeddings that grow for tokens which the tokenizer has and the weights do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

from tunerun.chat.tokenizer import load_tokenizer
from tunerun.errors import Problem
from tunerun.formats.lora import EMBEDDINGS, HEAD

# Ends of an adapter's tensors, and the dimension along which those of embedding and head have the tokens.
_TOKEN_PARTS = ((".lora_embedding_A", 1), (".lora_B.weight", 0), (".weight", 0))


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
    for weight in matrices(model).values():
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
    whole = [value.shape[0] for name, value in tensors.items() if name.endswith((*EMBEDDINGS, HEAD))]
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
    grown = matrices(model)
    rows = list(range(before, model.get_input_embeddings().weight.shape[0]))
    if not rows or (len(grown) == 1 and {*grown, "lm_head"} & set(modules_to_save)):
        return None
    return {name: rows for name in grown if name not in modules_to_save} or None


def untrained(model: Any, before: int, tensors: Mapping[str, Tensor], config: LoraConfig) -> list[str]:
    """Returns the matrices, by name, of whose added rows an adapter does not train all.

    Args:
        model: The grown model, without the adapter.
        before: Rows that it had.
        tensors: The adapter's.
        config: The adapter's.
    """
    grown = matrices(model)
    rows, single = model.get_input_embeddings().weight.shape[0], token_rows(config)
    whole = _with_rows(tensors, rows)
    if len(grown) == 1 and "lm_head" in whole:
        return []
    added = set(range(before, rows))
    return [name for name in grown if name not in whole and not added <= set(single.get(name, ()))]


def untrained_problem(names: Sequence[str], why: str) -> Problem:
    """Returns what a user is told of matrices whose added rows would not be trained."""
    what = f"the rows that {' and '.join(names)} get for new tokens would not be trained: {why}."
    fix = "Choose method=full or a new adapter, name them in method.patterns of method=freeze, or set it to false."
    return Problem(where="model.resize_embeddings", what=what, fix=fix)


def _with_rows(tensors: Mapping[str, Tensor], rows: int) -> set[str]:
    """Returns the last names of the modules for which an adapter has so many rows, whole or as factors."""
    found: set[str] = set()
    for name, value in tensors.items():
        ending, dimension = next((part for part in _TOKEN_PARTS if name.endswith(part[0])), ("", 0))
        if ending and value.shape[dimension] == rows:
            found.add(name.removesuffix(ending).rpartition(".")[2])
    return found


def matrices(model: Any) -> dict[str, Any]:
    """Returns embedding and head by the last part of their names; tied ones once."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    found = {names[id(embedding)]: embedding.weight}
    if head is not None and head.weight is not embedding.weight:
        found[names[id(head)]] = head.weight
    return found
