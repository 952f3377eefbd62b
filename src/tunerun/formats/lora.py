"""LoRA adapters as peft writes them: what they change in a base model.

An adapter folder holds `adapter_config.json` and `adapter_model.safetensors`. An update adds
`scaling * B @ A` to a weight, with A of shape (rank, in) and B of shape (out, rank); scaling is
`alpha / rank` (LoRA, arXiv 2106.09685) or `alpha / sqrt(rank)` (rsLoRA, arXiv 2312.03732). DoRA then
scales each row of the sum to a length of its own (arXiv 2402.09353).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunerun.artifacts import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tunerun.errors import Problem, UserError
from tunerun.formats.floats import STORAGE
from tunerun.formats.safetensors import TensorInfo, read_header

# The output head's tensor, and how the input embedding's ends, in the models that transformers ties.
HEAD = "lm_head.weight"
EMBEDDINGS = ("embed_tokens.weight", "wte.weight")

PREFIX = "base_model.model."
# Fields that do not change what the weights mean once they are trained.
_NEUTRAL = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules",
    "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout",
    "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config",
    "target_modules", "task_type",
}  # fmt: skip
_READ = {
    "alpha_pattern", "bias", "ensure_weight_tying", "fan_in_fan_out", "init_lora_weights", "lora_alpha", "lora_bias",
    "modules_to_save", "peft_type", "r", "rank_pattern", "trainable_token_indices", "use_dora", "use_rslora",
}  # fmt: skip
# Other initialisations subtract the initial update from the base weights; the base on disk lacks that.
_PLAIN_INITS = (True, False, "gaussian", "eva")
_UPDATE_KEY = re.compile(
    r"^(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.weight)?$"
)
_BIAS = ".lora_B.bias"
_TOKENS = ".token_adapter.trainable_tokens_delta"


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
    lengths: TensorInfo | None = None
    """Shape (out,): DoRA's length of each row of the sum."""

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight that it fits."""
        out, inner = self.b.shape[0], self.a.shape[1]
        return (inner, out) if self.transposed else (out, inner)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shift:
    """An update of a bias: scaling * values is added."""

    values: TensorInfo
    scaling: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the bias that it fits."""
        return self.values.shape


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRows:
    """Rows of an embedding or head that were trained one by one."""

    indices: tuple[int, ...]
    values: TensorInfo
    """Shape (indices, width): what stands in these rows now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """What an adapter changes, by the name of the base model's tensor."""

    folder: Path
    updates: Mapping[str, Update | Shift]
    replacements: Mapping[str, TensorInfo]
    """Tensors trained and stored whole (`modules_to_save`, trained biases)."""
    token_rows: Mapping[str, TokenRows]
    tied: bool
    """Whether what changes one of two tied tensors changes the other."""
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
    config = _read_config(folder / ADAPTER_CONFIG)
    _check_config(folder / ADAPTER_CONFIG, config, model_type)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        fix = "Save the adapter as safetensors." if (folder / "adapter_model.bin").is_file() else ""
        raise UserError(Problem(where=str(folder), what=f"there is no {ADAPTER_WEIGHTS}.", fix=fix))
    parts: dict[str, dict[str, TensorInfo]] = {}
    found: dict[str, dict[str, TensorInfo]] = {kind: {} for kind in ("replacements", "copies", "tokens", "shifts")}
    problems: list[Problem] = []
    for key, info in read_header(folder / ADAPTER_WEIGHTS).items():
        name = key.removeprefix(PREFIX)
        if info.dtype not in STORAGE:
            problems.append(_problem(folder, key, f"its type {info.dtype} is not a float type"))
        elif match := _UPDATE_KEY.match(name):
            parts.setdefault(match["module"], {})[match["part"]] = info
        elif (kind := _kind(name, config)) is not None:
            found[kind][name.replace(".base_layer.", ".")] = info
        else:
            problems.append(_problem(folder, key, "is neither a LoRA factor nor named in modules_to_save"))
    updates: dict[str, Update | Shift] = {}
    for module, factors in parts.items():
        update = _update(module, factors, config, model_type)
        if isinstance(update, str):
            problems.append(_problem(folder, module, update))
        else:
            updates[f"{module}.weight"] = update
    for name, info in found["shifts"].items():
        module = name.removesuffix(_BIAS)
        updates[f"{module}.bias"] = Shift(values=info, scaling=_scaling(module, config))
    token_rows: dict[str, TokenRows] = {}
    for name, info in found["tokens"].items():
        rows = _token_rows(name.removesuffix(_TOKENS), info, config)
        if isinstance(rows, str):
            problems.append(_problem(folder, name, rows))
        else:
            token_rows[f"{name.removesuffix(_TOKENS)}.weight"] = rows
    if problems:
        raise UserError(problems)
    return Adapter(
        folder=folder,
        updates=updates,
        replacements=found["replacements"],
        token_rows=token_rows,
        tied=bool(config["ensure_weight_tying"]),
        base_copies=found["copies"],
    )


def _kind(name: str, config: Mapping[str, Any]) -> str | None:
    """Says what a tensor is that is no factor of an update."""
    if name.endswith(_BIAS):
        return "shifts"
    if name.endswith(_TOKENS):
        return "tokens"
    if _is_whole(name, config) or (config["bias"] != "none" and name.endswith(".bias")):
        return "replacements"
    return "copies" if name.replace(".base_layer.", ".").endswith((*EMBEDDINGS, HEAD)) else None


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(Problem(where=str(file.parent), what=f"there is no {ADAPTER_CONFIG}.", fix="Is it an adapter?"))
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(Problem(where=str(file), what=f"it is not JSON ({error}).")) from None
    missing = [field for field in ("peft_type", "r", "lora_alpha") if field not in config]
    if missing and config.get("peft_type", "LORA") == "LORA":
        raise UserError(Problem(where=str(file), what=f"it has no {', '.join(missing)}."))
    # Fields that older versions of peft did not write.
    defaults: dict[str, Any] = {"rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None, "bias": "none"}
    return defaults | {"ensure_weight_tying": False, "trainable_token_indices": None, "use_dora": False} | config


def _check_config(file: Path, config: Mapping[str, Any], model_type: str) -> None:
    if config["peft_type"] != "LORA":
        raise UserError(
            Problem(
                where=f"{file}: peft_type",
                what=f"{config['peft_type']} adapters cannot be merged, only LORA.",
            )
        )
    unsupported = {field: value for field, value in config.items() if field not in _NEUTRAL | _READ and value}
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
    lengths = factors.get("lora_magnitude_vector")
    match {part: info for part, info in factors.items() if info is not lengths}:
        case {"lora_A": a, "lora_B": b, **rest} if not rest:
            transposed = module.rpartition(".")[2] in _CONV1D_MODULES.get(model_type, set())
        case {"lora_embedding_A": a, "lora_embedding_B": b, **rest} if not rest and lengths is None:
            transposed = True
        case _:
            return f"has only {', '.join(sorted(factors))}"
    if bool(config["use_dora"]) != (lengths is not None):
        return "has a magnitude vector where the config says use_dora=false, or none where it says true"
    rank = _pattern_value(config["rank_pattern"], module, config["r"])
    if len(a.shape) != 2 or len(b.shape) != 2 or not (a.shape[0] == b.shape[1] == rank):
        return f"has factors of shape {a.shape} and {b.shape} where the config says rank {rank}"
    if lengths is not None and lengths.shape != b.shape[:1]:
        return f"has a magnitude vector of shape {lengths.shape} for {b.shape[0]} rows"
    return Update(a=a, b=b, scaling=_scaling(module, config), transposed=transposed, lengths=lengths)


def _scaling(module: str, config: Mapping[str, Any]) -> float:
    rank = _pattern_value(config["rank_pattern"], module, config["r"])
    alpha: float = _pattern_value(config["alpha_pattern"], module, config["lora_alpha"])
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _token_rows(module: str, values: TensorInfo, config: Mapping[str, Any]) -> TokenRows | str:
    """Pairs trained rows with their numbers, which the config lists for the embedding or by module."""
    listed = config["trainable_token_indices"]
    by_module = listed if isinstance(listed, dict) else {module: listed or []}
    matching = [rows for name, rows in by_module.items() if f".{module}".endswith(f".{name}")]
    if len(matching) != 1 or len(matching[0]) != values.shape[0]:
        return f"has {values.shape[0]} rows, and trainable_token_indices does not number them"
    return TokenRows(indices=tuple(int(index) for index in matching[0]), values=values)


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
    return Problem(where=f"{folder / ADAPTER_WEIGHTS}: {key}", what=f"{what}.")
