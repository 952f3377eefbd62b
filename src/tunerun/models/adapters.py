"""LoRA adapters through peft, so that they load anywhere; weights in float32, the base frozen.

Method: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"; the update is alpha / rank * B A.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from tunerun.errors import Problem, UserError

WEIGHTS = "adapter_model.safetensors"
ALL_LINEAR = "all-linear"

# Where these share one matrix, training one of them trains both.
_TIED = frozenset({"embed_tokens", "lm_head"})


def add_lora(
    model: Any,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    target_modules: tuple[str, ...],
    modules_to_save: tuple[str, ...],
    seed: int,
) -> Any:
    """Adds a fresh LoRA adapter; the model's own weights are frozen.

    Args:
        model: A transformers model.
        rank: Rank of the update matrices.
        alpha: The update is scaled by alpha / rank.
        dropout: Share of the adapter's inputs zeroed while training.
        target_modules: Names of the adapted modules, or only `all-linear`.
        modules_to_save: Modules trained in full.
        seed: Decides the initial weights.

    Raises:
        UserError: A named module does not exist in the model.
    """
    _check_modules(model, target_modules, modules_to_save)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=_linear_names(model) if target_modules == (ALL_LINEAR,) else list(target_modules),
        modules_to_save=list(modules_to_save) or None,
        ensure_weight_tying=model.config.tie_word_embeddings and not _TIED.isdisjoint(modules_to_save),
    )
    torch.manual_seed(seed)
    return _trainable_in_float32(get_peft_model(model, config))


def load_adapter(model: Any, folder: Path, *, trainable: bool) -> Any:
    """Puts an existing adapter on a model.

    Args:
        model: A transformers model.
        folder: adapter_config.json and adapter_model.safetensors.
        trainable: Whether training goes on with it.

    Raises:
        UserError: The folder holds no adapter in safetensors.
    """
    missing = [name for name in ("adapter_config.json", WEIGHTS) if not (folder / name).is_file()]
    if missing:
        what = f"is no adapter folder: {' and '.join(missing)} missing."
        raise UserError(Problem(where=str(folder), what=what, fix="Name a folder that peft saved as safetensors."))
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = not trainable
    adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable, config=config)
    if trainable:
        _trainable_in_float32(adapted)
        # peft filled modules trained in full through the base's format, which may have rounded them.
        set_peft_model_state_dict(adapted, load_file(folder / WEIGHTS))
    return adapted


def save_adapter(adapted: Any, target: Path, *, base_name: str) -> None:
    """Writes an adapter as peft does: adapter_config.json and adapter_model.safetensors.

    Args:
        adapted: A peft model.
        target: A staging folder; made here.
        base_name: What the adapter belongs to, such as a hub id; recorded in its config.
    """
    target.mkdir(parents=True)
    weights = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    # Sorted: the same weights are the same bytes. Copied: safetensors refuses tied ones.
    tensors = {name: weights[name].detach().cpu().clone() for name in sorted(weights)}
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    config = copy.copy(adapted.peft_config[adapted.active_adapter])
    config.base_model_name_or_path, config.inference_mode = base_name, True
    if not isinstance(config.target_modules, str):
        # peft keeps a set, whose order is another one in each process.
        config.target_modules = sorted(config.target_modules)
    config.save_pretrained(str(target))


def _check_modules(model: Any, target_modules: tuple[str, ...], modules_to_save: tuple[str, ...]) -> None:
    names = {part for name, _ in model.named_modules() for part in (name, name.rpartition(".")[2])}
    linear = ", ".join(_linear_names(model))
    problems = [
        Problem(where=f"method.{key}", what=f"the model has no module `{name}`.", fix=f"Linear ones: {linear}.")
        for key, wanted in (("target_modules", target_modules), ("modules_to_save", modules_to_save))
        for name in wanted
        if name not in names and name != ALL_LINEAR
    ]
    if problems:
        raise UserError(problems)


def _linear_names(model: Any) -> list[str]:
    """Returns the last names of all linear layers but the output layer."""
    head = model.get_output_embeddings()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return sorted({name.rpartition(".")[2] for name, module in layers.items() if module is not head})


def _trainable_in_float32(adapted: Any) -> Any:
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted
