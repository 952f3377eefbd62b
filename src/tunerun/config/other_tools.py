"""What keys are called in other training tools, and in which section they stand here."""

from __future__ import annotations

import dataclasses
from difflib import get_close_matches
from functools import cache
from typing import cast

from tunerun.config import typed
from tunerun.config.schema import RunConfig
from tunerun.errors import Problem

# Names in transformers, TRL, PEFT, LLaMA-Factory, axolotl and XTuner: what is typed here.
NAMES = {
    "model_name_or_path": "model.path",
    "pretrained_model_name_or_path": "model.path",
    "base_model": "model.path",
    "adapter_name_or_path": "model.adapter",
    "template": "model.chat_template",
    "dataset": "data.path",
    "datasets": "data.path",
    "train_file": "data.path",
    "eval_dataset": "data.eval_path",
    "val_size": "data.eval_fraction",
    "val_set_size": "data.eval_fraction",
    "max_samples": "data.max_rows",
    "cutoff_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "max_seq_len": "data.max_length",
    "sequence_len": "data.max_length",
    "sample_packing": "data.packing",
    "pack_to_max_length": "data.packing",
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "max_epochs": "train.epochs",
    "lr": "train.learning_rate",
    "lr_scheduler": "train.schedule",
    "lr_scheduler_type": "train.schedule",
    "warmup_ratio": "train.warmup_fraction",
    "optim": "train.optimizer",
    "batch_size": "train.global_batch_size",
    "per_device_train_batch_size": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.global_batch_size",
    "accumulative_counts": "train.global_batch_size",
    "gradient_checkpointing": "train.activation_checkpointing",
    "max_norm": "train.max_grad_norm",
    "neftune_noise_alpha": "train.neftune_alpha",
    "save_steps": "train.checkpoint_steps",
    "save_total_limit": "train.keep_checkpoints",
    "logging_steps": "train.log_steps",
    "load_best_model_at_end": "train.keep_best",
    "metric_for_best_model": "train.best_metric",
    "output_dir": "run_dir",
    "work_dir": "run_dir",
    "stage": "objective",
    "rl": "objective",
    "pref_beta": "objective.beta",
    "finetuning_type": "method",
    "r": "method.rank",
    "lora_r": "method.rank",
    "lora_rank": "method.rank",
    "lora_alpha": "method.alpha",
    "lora_dropout": "method.dropout",
    "lora_target": "method.target_modules",
    "lora_target_modules": "method.target_modules",
    "quantization_bit": "method.bits",
    "load_in_4bit": "method.bits",
    "bf16": "hardware.precision",
    "fp16": "hardware.precision",
    "nproc_per_node": "hardware.processes",
    "num_processes": "hardware.processes",
    "report_to": "track",
}
_ALIKE = 0.85


def keys_for(name: str, section: str = "") -> list[str]:
    """Returns the keys that a name can stand for, as they are typed.

    Args:
        name: The last part of a key, as another tool may call it.
        section: The section it was looked for in; without one, keys of similar names are returned, too.
    """
    if name in NAMES:
        return [NAMES[name]]
    keys = _keys()
    if section or name in keys:
        return keys.get(name, [])
    return [key for near in get_close_matches(name, keys, n=2, cutoff=_ALIKE) for key in keys[near]]


def renamed(problem: Problem) -> Problem:
    """Names the key of this schema where an unknown one is known by its name or stands in the wrong section."""
    if not isinstance(problem, typed.UnknownKey):
        return problem
    section, _, name = problem.where.rpartition(".")
    found = keys_for(name, section)
    return dataclasses.replace(problem, fix=f"Did you mean {' or '.join(found)}?") if found else problem


@cache
def _keys() -> dict[str, list[str]]:
    """Returns the dotted keys of the schema by their last part."""
    found: dict[str, list[str]] = {}
    _collect(RunConfig, "", found)
    return found


def _collect(cls: type, prefix: str, found: dict[str, list[str]]) -> None:
    for name, annotation in typed.field_types(cls).items():
        if dataclasses.is_dataclass(annotation):
            _collect(cast(type, annotation), f"{prefix}{name}.", found)
        else:
            found.setdefault(name, []).append(f"{prefix}{name}")
