"""Loads a causal language model from a local folder, or builds one of its shape, and writes it back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from tunerun import artifacts
from tunerun.errors import Problem, StageError, UserError, require
from tunerun.formats import safetensors
from tunerun.formats.architectures import TRAINED_ARCHITECTURES
from tunerun.models import fused
from tunerun.models.attention import SEGMENTS
from tunerun.models.folder import carry_files
from tunerun.plan.steps import Quantisation

CONFIG = "config.json"

Head = Literal["tokens", "score"]
"""What a model gives: logits of the next token, or one score for a row (a classifier with one label)."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DTYPES_IN_FILES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: str,
    attention: str = "sdpa",
    trust_remote_code: bool = False,
    quantisation: Quantisation | None = None,
    head: Head = "tokens",
) -> Any:
    """Loads the weights of a model folder; only safetensors are read.

    Args:
        folder: config.json and weights.
        dtype: Of the weights in memory, and of the computation with quantised ones.
        device: `cpu` or `cuda`.
        attention: Name of an attention function known to transformers.
        trust_remote_code: Whether Python code in the folder may run.
        quantisation: How bitsandbytes holds the linear layers but the head; None leaves them as they are.
        head: What the model gives; a score's weights are drawn from torch's generator when the folder has none.

    Returns:
        A transformers model in evaluation mode.

    Raises:
        MissingExtra: bitsandbytes is needed and not installed.
        StageError: The weights are damaged or do not fit the config, or the attention cannot be that of the model.
    """
    if attention == SEGMENTS and head == "tokens":
        _require_known(folder)
    from safetensors import SafetensorError
    from transformers.utils import logging as reports

    # tunerun shows its own progress.
    reports.disable_progress_bar()
    verbosity = reports.get_verbosity()
    if head == "score":
        # That the folder has no head for scores is no news.
        reports.set_verbosity_error()
    try:
        model = _class_of(head).from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            **({} if head == "tokens" else {"num_labels": 1}),
            **_options(folder, quantisation, dtype, device),
        )
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise StageError(f"{folder}: the model cannot be loaded: {error}") from error
    finally:
        reports.set_verbosity(verbosity)
    fused.fuse(model)
    if quantisation is None and not is_quantised(folder):
        return model.to(device)
    # bitsandbytes' weights are already there, and refuse to be moved.
    return _compute_alike(model)


def _require_known(folder: Path) -> None:
    """Refuses what may compute attention, or mix tokens, in a way that does not keep samples of one row apart.

    Raises:
        StageError: The folder is of such a model.
    """
    names = artifacts.read_json(folder / CONFIG).get("architectures") or ["its model"]
    if names[0] not in TRAINED_ARCHITECTURES:
        known = ", ".join(TRAINED_ARCHITECTURES)
        raise StageError(f"{folder}: {names[0]} is not among the architectures that are trained. Those are: {known}.")


def _options(folder: Path, quantisation: Quantisation | None, dtype: torch.dtype, device: str) -> dict[str, Any]:
    if quantisation is not None:
        return _quantised(quantisation, dtype, device)
    if not is_quantised(folder):
        return {}
    require("bitsandbytes", "quant")
    return {"device_map": {"": device}}


def is_quantised(folder: Path) -> bool:
    """Says whether bitsandbytes quantised a folder's weights already."""
    config = artifacts.read_json(folder / CONFIG).get("quantization_config") or {}
    return bool(config.get("quant_method") == "bitsandbytes")


def _class_of(head: Head) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForCausalLM if head == "tokens" else AutoModelForSequenceClassification


def load_dequantised(
    folder: Path, *, quantisation: Quantisation, dtype: torch.dtype, device: str, **options: Any
) -> Any:
    """Loads a model whose linear layers hold what is left of them after quantisation.

    Args:
        folder: config.json and weights.
        quantisation: What the weights went through.
        dtype: Of the weights in memory.
        device: `cpu` or `cuda`.
        options: As for `load_model`.
    """
    model = load_model(folder, quantisation=quantisation, dtype=dtype, device=device, **options)
    return model.dequantize(dtype=dtype).eval()


def _compute_alike(model: Any) -> Any:
    """Lets 4-bit layers compute in evaluation as they do in training, on every CPU.

    With avx512_bf16 bitsandbytes packs the weights anew for evaluation and rounds what goes through them to bf16: what
    is measured would not be what is trained.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _quantised(quantisation: Quantisation, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Returns the options that make transformers quantise while it loads (Dettmers et al. 2023, "QLoRA")."""
    from transformers import BitsAndBytesConfig

    require("bitsandbytes", "quant")
    if quantisation.bits == 8:
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=quantisation.double,
            bnb_4bit_compute_dtype=dtype,
        )
    return {"quantization_config": config, "device_map": {"": device}}


def random_model(folder: Path, *, seed: int, device: str, attention: str = "sdpa") -> Any:
    """Builds a float32 model with random weights in the shape of a folder's config.json.

    Args:
        folder: Holds config.json.
        seed: Decides the weights.
        device: `cpu` or `cuda`.
        attention: Name of an attention function known to transformers.

    Raises:
        StageError: The attention cannot be that of the model.
    """
    if attention == SEGMENTS:
        _require_known(folder)
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    fused.fuse(model)
    return model.eval().to(device)


def saved_dtype(folder: Path) -> torch.dtype:
    """Returns the number format that config.json states for the weights; float32 when it states none."""
    config = artifacts.read_json(folder / CONFIG)
    # `torch_dtype` is what transformers wrote before 4.56.
    names = [config[key] for key in ("dtype", "torch_dtype") if key in config and config[key] is not None]
    if not names:
        return torch.float32
    if names[0] not in _DTYPES:
        raise UserError(
            Problem(where=str(folder / CONFIG), what=f"{names[0]!r} weights cannot be written.", fix=f"{list(_DTYPES)}")
        )
    return _DTYPES[names[0]]


def dtype_in_files(folder: Path) -> torch.dtype | None:
    """Returns the number format of all weights of a folder, whatever config.json states; None when they have several.

    Raises:
        UserError: A file is damaged or missing.
    """
    found = {info.dtype for info in safetensors.read_table(folder).values()}
    return _DTYPES_IN_FILES.get(found.pop()) if len(found) == 1 else None


def save_model(
    model: Any,
    target: Path,
    weights: Mapping[str, torch.Tensor],
    *,
    base: Path,
    dtype: torch.dtype,
    max_shard_size_bytes: int,
) -> None:
    """Writes a complete model folder: weights, config, generation settings, tokenizer and chat template.

    Args:
        model: A transformers model.
        target: A staging folder; made here.
        weights: The model's state; tied weights share memory.
        base: The folder the model came from; its tokenizer files are copied byte for byte.
        dtype: Of the weights on disk.
        max_shard_size_bytes: Largest weights file.
    """
    state = {name: tensor.detach().to(dtype) for name, tensor in _untied(weights).items()}
    model.save_pretrained(target, state_dict=state, max_shard_size=max_shard_size_bytes)
    config = artifacts.read_json(target / CONFIG)
    artifacts.write_json(target / CONFIG, {**config, "dtype": str(dtype).removeprefix("torch.")})
    carry_files(base, target)


def _untied(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keeps one name for weights that share memory, as tied embeddings do: the first, which loading ties again."""
    first = {(tensor.data_ptr(), tensor.shape): name for name, tensor in reversed(list(state.items()))}
    return {name: tensor for name, tensor in state.items() if first[(tensor.data_ptr(), tensor.shape)] == name}
