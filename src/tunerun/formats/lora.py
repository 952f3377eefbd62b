"""LoRA adapters as peft writes them: what they change in a base model.

An adapter folder holds `adapter_config.json` and `adapter_model.safetensors`. An update adds
`scaling * B @ A` to a weight, with A of shape (rank, in) and B of shape (out, rank); scaling is
`alpha / rank` (LoRA, arXiv 2106.09685) or `alpha / sqrt(rank)` (rsLoRA, arXiv 2312.03732).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunerun.errors import Problem, UserError
from tunerun.formats.floats import STORAGE
from tunerun.formats.safetensors import TensorInfo, read_header

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

# The output head's tensor, and how the input embedding's ends, in the models that transformers ties.
HEAD = "lm_head.weight"
EMBEDDINGS = ("embed_tokens.weight", "wte.weight")

_PREFIX = "base_model.model."
# Fields that do not change what the weights mean once they are trained.
_NEUTRAL = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules",
    "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout",
    "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config",
    "target_modules", "task_type",
}  # fmt: skip
_READ = {
    "alpha_pattern", "bias", "fan_in_fan_out", "init_lora_weights", "lora_alpha", "modules_to_save",
    "peft_type", "r", "rank_pattern", "use_rslora",
}  # fmt: skip
# Other initialisations subtract the initial update from the base weights; the base on disk lacks that.
_PLAIN_INITS = (True, False, "gaussian", "eva")
_UPDATE_KEY = re.compile(r"^(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B)(\.weight)?$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """A low-rank update of one weight."""

    a: TensorInfo
    """Shape (rank, in)."""
    b: TensorInfo
    """Shape (out, rank)."""
    scaling: float
    transposed: bool
    """Whether the weight is stored as (in, out): embeddings, and GPT-2's Conv1D."""

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight that it fits."""
        out, inner = self.b.shape[0], self.a.shape[1]
        return (inner, out) if self.transposed else (out, inner)


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """What an adapter changes, by the name of the base model's tensor."""

    folder: Path
    updates: Mapping[str, Update]
    replacements: Mapping[str, TensorInfo]
    """Tensors trained and stored whole (`modules_to_save`)."""
    base_copies: Mapping[str, TensorInfo]
    """Embedding and head of the base as they were in training; peft adds them when it thinks that the
    vocabulary may have been resized."""


def read_adapter(folder: Path, *, model_type: str) -> Adapter:
    """Reads what an adapter changes.

    Args:
        folder: Holds `adapter_config.json` and `adapter_model.safetensors`.
        model_type: Of the base model's config.json; GPT-2 stores some weights transposed.

    Raises:
        UserError: A file is missing or broken, or the adapter uses what tunerun cannot merge.
    """
    config = _read_config(folder / CONFIG)
    _check_config(folder / CONFIG, config, model_type)
    if not (folder / WEIGHTS).is_file():
        fix = "Save the adapter as safetensors." if (folder / "adapter_model.bin").is_file() else ""
        raise UserError(Problem(where=str(folder), what=f"there is no {WEIGHTS}.", fix=fix))
    parts: dict[str, dict[str, TensorInfo]] = {}
    replacements: dict[str, TensorInfo] = {}
    base_copies: dict[str, TensorInfo] = {}
    problems: list[Problem] = []
    for key, info in read_header(folder / WEIGHTS).items():
        name = key.removeprefix(_PREFIX)
        if info.dtype not in STORAGE:
            problems.append(_problem(folder, key, f"its type {info.dtype} is not a float type"))
        elif match := _UPDATE_KEY.match(name):
            parts.setdefault(match["module"], {})[match["part"]] = info
        elif _is_whole(name, config):
            replacements[name] = info
        elif name.replace(".base_layer.", ".").endswith((*EMBEDDINGS, HEAD)):
            base_copies[name.replace(".base_layer.", ".")] = info
        else:
            problems.append(_problem(folder, key, "is neither a LoRA factor nor named in modules_to_save"))
    updates: dict[str, Update] = {}
    for module, factors in parts.items():
        update = _update(module, factors, config, model_type)
        if isinstance(update, str):
            problems.append(_problem(folder, module, update))
        else:
            updates[f"{module}.weight"] = update
    if problems:
        raise UserError(problems)
    return Adapter(folder=folder, updates=updates, replacements=replacements, base_copies=base_copies)


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(Problem(where=str(file.parent), what=f"there is no {CONFIG}.", fix="Is it an adapter?"))
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(Problem(where=str(file), what=f"it is not JSON ({error}).")) from None
    missing = [field for field in ("peft_type", "r", "lora_alpha") if field not in config]
    if missing and config.get("peft_type", "LORA") == "LORA":
        raise UserError(Problem(where=str(file), what=f"it has no {', '.join(missing)}."))
    return {"rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None} | config


def _check_config(file: Path, config: Mapping[str, Any], model_type: str) -> None:
    if config["peft_type"] != "LORA":
        raise UserError(
            Problem(
                where=f"{file}: peft_type",
                what=f"{config['peft_type']} adapters cannot be merged, only LORA.",
            )
        )
    unsupported = {field: value for field, value in config.items() if field not in _NEUTRAL | _READ and value}
    if config.get("bias", "none") != "none":
        unsupported["bias"] = config["bias"]
    if config.get("init_lora_weights", True) not in _PLAIN_INITS:
        unsupported["init_lora_weights"] = config["init_lora_weights"]
    if config.get("fan_in_fan_out") and model_type not in _CONV1D_MODULES:
        unsupported["fan_in_fan_out"] = True
    if unsupported:
        raise UserError(
            Problem(where=f"{file}: {field}", what=f"merging with {field}={json.dumps(value)} is not supported.")
            for field, value in unsupported.items()
        )


# The linear layers of these models are transformers' Conv1D, which keeps its weight as (in, out).
_CONV1D_MODULES = {"gpt2": {"c_attn", "q_attn", "c_proj", "c_fc"}}


def _update(module: str, factors: Mapping[str, TensorInfo], config: Mapping[str, Any], model_type: str) -> Update | str:
    match factors:
        case {"lora_A": a, "lora_B": b, **rest} if not rest:
            transposed = module.rpartition(".")[2] in _CONV1D_MODULES.get(model_type, set())
        case {"lora_embedding_A": a, "lora_embedding_B": b, **rest} if not rest:
            transposed = True
        case _:
            return f"has only {', '.join(sorted(factors))}"
    rank = _pattern_value(config["rank_pattern"], module, config["r"])
    alpha = _pattern_value(config["alpha_pattern"], module, config["lora_alpha"])
    if len(a.shape) != 2 or len(b.shape) != 2 or not (a.shape[0] == b.shape[1] == rank):
        return f"has factors of shape {a.shape} and {b.shape} where the config says rank {rank}"
    scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return Update(a=a, b=b, scaling=scaling, transposed=transposed)


def _pattern_value(patterns: Mapping[str, float], module: str, default: float) -> Any:
    # peft: the first pattern that matches the end of the module's name, from a dot on.
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _is_whole(name: str, config: Mapping[str, Any]) -> bool:
    parts = name.split(".")
    return any(_contains(parts, saved.split(".")) for saved in config["modules_to_save"] or ())


def _contains(parts: list[str], wanted: list[str]) -> bool:
    return any(window == wanted for window in _windows(parts, len(wanted)))


def _windows(parts: list[str], width: int) -> Iterator[list[str]]:
    return (parts[start : start + width] for start in range(len(parts) - width + 1))


def _problem(folder: Path, key: str, what: str) -> Problem:
    return Problem(where=f"{folder / WEIGHTS}: {key}", what=f"{what}.")
