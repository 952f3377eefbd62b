"""Whether an adapter's matrices fit the modules of a model, before peft builds anything."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from tunerun.errors import Problem
from tunerun.formats.lora import PREFIX

_FACTOR = re.compile(r"^(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B)(\.weight)?$")


def misfits(model: Any, tensors: Mapping[str, Tensor], where: str) -> list[Problem]:
    """Returns what is wrong between an adapter and a model: modules that are missing or of another size.

    Args:
        model: A transformers model without adapters.
        tensors: Of the adapter's file.
        where: The adapter's folder, for messages.
    """
    modules = dict(model.named_modules())
    found: dict[str, str] = {}
    for key, tensor in tensors.items():
        match = _FACTOR.match(key.removeprefix(PREFIX))
        if match is None:
            continue
        name, part = match["module"], match["part"]
        if name not in modules:
            found[name] = "the model has no such module"
            continue
        inputs, outputs = _sizes(modules[name])
        wanted, here = (inputs, tensor.shape[1]) if part.endswith("_A") else (outputs, tensor.shape[0])
        if wanted != here:
            found[name] = f"its {part} is made for a width of {here}, the model's is {wanted}"
    fix = "Set model.path to the base model that the adapter was trained on."
    return [Problem(where=f"{where}: {name}", what=f"{what}.", fix=fix) for name, what in found.items()]


def _sizes(module: Any) -> tuple[int, int]:
    """Returns the widths of a module's input and output."""
    if isinstance(module, torch.nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return module.in_features, module.out_features
