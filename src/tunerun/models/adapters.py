"""Adapters through peft, so that they load anywhere; their weights are float32 and the base is frozen.

LoRA adds scaling * B A to a weight: alpha / rank (Hu et al. 2021, arXiv 2106.09685), or alpha / sqrt(rank) for
rsLoRA (Kalajdzievski 2023, arXiv 2312.03732). DoRA trains the length of each row besides (Liu et al. 2024, arXiv
2402.09353). PiSSA starts from the weight's principal components (Meng et al. 2024, arXiv 2404.02948): see `pissa`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunerun import artifacts
from tunerun.config.schema import ALL_LINEAR, MethodConfig
from tunerun.errors import Problem, UserError
from tunerun.formats.trained_base import write_quantisation
from tunerun.models import pissa, vocabulary
from tunerun.models.adapter_fit import misfits
from tunerun.plan.steps import Quantisation

# Where these share one matrix, training one of them trains both.
_TIED = frozenset({"embed_tokens", "lm_head"})


def add_adapter(model: Any, method: MethodConfig, *, seed: int, known_tokens: int | None = None) -> Any:
    """Adds a fresh adapter, which changes nothing yet; the model's own weights are frozen.

    Args:
        model: A transformers model.
        method: An adapter method and its settings.
        seed: Decides the initial weights.
        known_tokens: Rows of the embedding that the weights came with; those added since are trained.

    Raises:
        UserError: A named module does not exist in the model.
    """
    _check_modules(model, method)
    torch.manual_seed(seed)
    config = _peft_config(model, method)
    if known_tokens is not None:
        config.trainable_token_indices = vocabulary.new_rows(model, known_tokens, method.modules_to_save)
    adapted = get_peft_model(model, config)
    _exact_lengths(adapted)
    return _trainable_in_float32(adapted)


def load_adapter(model: Any, folder: Path, *, trainable: bool) -> Any:
    """Puts an existing adapter on a model, whose embedding grows when the adapter's has more rows.

    Args:
        model: A transformers model.
        folder: adapter_config.json and adapter_model.safetensors.
        trainable: Whether training goes on with it.

    Raises:
        UserError: The folder holds no adapter in safetensors, or it does not fit the model.
    """
    tensors, config = _read(folder)
    vocabulary.grow_to_adapter(model, tensors, config)
    _check_fit(model, tensors, folder)
    config.inference_mode = not trainable
    adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable, config=config)
    if trainable:
        _trainable_in_float32(adapted)
        # peft filled modules trained in full through the base's format, which may have rounded them.
        set_peft_model_state_dict(adapted, tensors)
    return adapted


def load_adapters(model: Any, folders: Sequence[Path]) -> Any:
    """Puts several existing adapters on a model, of which `choose_adapter` takes one at a time.

    Args:
        model: A transformers model.
        folders: adapter_config.json and adapter_model.safetensors each; at least one.

    Returns:
        A peft model without gradients.

    Raises:
        UserError: A folder holds no adapter in safetensors, it does not fit the model, or the adapters give the
            embedding different numbers of rows.
    """
    read = [_read(folder) for folder in folders]
    base_rows = model.get_input_embeddings().num_embeddings
    rows = {vocabulary.adapter_rows(tensors, config) or base_rows for tensors, config in read}
    if len({max(base_rows, count) for count in rows}) > 1:
        what = f"the adapters give the embedding different numbers of rows: {sorted(rows)}."
        fix = "Serve them apart."
        raise UserError(Problem(where=", ".join(map(str, folders)), what=what, fix=fix))
    for (tensors, config), folder in zip(read, folders, strict=True):
        vocabulary.grow_to_adapter(model, tensors, config)
        _check_fit(model, tensors, folder)
        config.inference_mode = True
    adapted = PeftModel.from_pretrained(model, str(folders[0]), adapter_name=_numbered(0), config=read[0][1])
    for index, folder in enumerate(folders[1:], 1):
        adapted.load_adapter(str(folder), _numbered(index))
    return adapted


def choose_adapter(adapted: Any, index: int | None) -> None:
    """Lets one of the adapters of `load_adapters` compute, by its place; None for the model without any."""
    if index is None:
        adapted.base_model.disable_adapter_layers()
        return
    adapted.base_model.enable_adapter_layers()
    adapted.set_adapter(_numbered(index), inference_mode=True)


def _numbered(index: int) -> str:
    # peft makes names of modules of it, which may have no dots.
    return f"adapter_{index}"


def _read(folder: Path) -> tuple[dict[str, Tensor], Any]:
    missing = [name for name in (artifacts.ADAPTER_CONFIG, artifacts.ADAPTER_WEIGHTS) if not (folder / name).is_file()]
    if missing:
        what = f"is no adapter folder: {' and '.join(missing)} missing."
        raise UserError(Problem(where=str(folder), what=what, fix="Name a folder that peft saved as safetensors."))
    return load_file(folder / artifacts.ADAPTER_WEIGHTS), PeftConfig.from_pretrained(str(folder))


def _check_fit(model: Any, tensors: Mapping[str, Tensor], folder: Path) -> None:
    problems = misfits(model, tensors, str(folder))
    if problems:
        raise UserError(problems)


def check_kind(folder: Path, method: MethodConfig) -> None:
    """Raises when an adapter to go on with is of another kind than the method.

    Raises:
        UserError: Its config says otherwise than `method.kind`.
    """
    config = artifacts.read_json(folder / artifacts.ADAPTER_CONFIG)
    dora, rslora = bool(config.get("use_dora")), bool(config.get("use_rslora"))
    kind = "dora" if dora else "rslora" if rslora else "lora"
    wanted = method.kind if method.kind in ("dora", "rslora") else "lora"
    if kind != wanted:
        what = f"{method.kind} cannot go on with {folder}, which is a {kind} adapter."
        raise UserError(Problem(where="method.kind", what=what, fix=f"Choose method={kind}."))


def check_new_rows(model: Any, folder: Path, known_tokens: int) -> None:
    """Raises when an adapter to go on with leaves rows alone that the embedding was given for new tokens.

    Args:
        model: The grown model, without the adapter.
        folder: The adapter's.
        known_tokens: Rows that the weights came with.

    Raises:
        UserError: It trains none of them, or only those of other tokens.
    """
    left = vocabulary.untrained(model, known_tokens, *_read(folder))
    if left:
        raise UserError(vocabulary.untrained_problem(left, f"{folder} does not train all of them"))


def save_adapter(
    adapted: Any,
    target: Path,
    trained: Mapping[str, Tensor] | None = None,
    *,
    base_name: str,
    initial: Mapping[str, Tensor] | None = None,
    quantisation: Quantisation | None = None,
) -> None:
    """Writes an adapter as peft does, and beside it how its base was quantised, if it was.

    Args:
        adapted: A peft model.
        target: A staging folder; made here.
        trained: Weights by their names in the base model, where the model itself has only parts of them.
        base_name: What the adapter belongs to, such as a hub id; recorded in its config.
        initial: PiSSA's initial factors: the adapter is written as a LoRA of the untouched base.
        quantisation: Of the base's linear layers.
    """
    target.mkdir(parents=True)
    if quantisation is not None:
        write_quantisation(target, quantisation)
    names = {id(parameter): name for name, parameter in adapted.get_base_model().named_parameters()}
    whole = {} if trained is None else trained
    state = {
        # By identity: tied weights have several names.
        name: whole.get(names.get(id(value), ""), value)
        for name, value in adapted.state_dict(keep_vars=True).items()
    }
    weights = dict(get_peft_model_state_dict(adapted, state_dict=state, save_embedding_layers=False))
    config = copy.copy(adapted.peft_config[adapted.active_adapter])
    if initial is not None:
        weights, config = pissa.to_lora(weights, initial), pissa.to_lora_config(config)
    # Sorted: the same weights are the same bytes. Copied: safetensors refuses tied ones.
    tensors = {name: weights[name].detach().cpu().clone() for name in sorted(weights)}
    save_file(tensors, target / artifacts.ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config.base_model_name_or_path, config.inference_mode = base_name, True
    if not isinstance(config.target_modules, str):
        # peft keeps a set, whose order is another one in each process.
        config.target_modules = sorted(config.target_modules)
    if gives_scores(adapted.get_base_model()):
        # peft names the heads of classifiers anew each time that it loads one.
        config.modules_to_save = sorted(set(config.modules_to_save))
    config.save_pretrained(str(target))


def _peft_config(model: Any, method: MethodConfig) -> LoraConfig:
    targets = _linear_names(model) if method.target_modules == (ALL_LINEAR,) else list(method.target_modules)
    return LoraConfig(
        task_type="SEQ_CLS" if gives_scores(model) else "CAUSAL_LM",
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=targets,
        modules_to_save=list(method.modules_to_save) or None,
        ensure_weight_tying=model.config.tie_word_embeddings and not _TIED.isdisjoint(method.modules_to_save),
        rank_pattern=dict(method.rank_pattern),
        alpha_pattern=dict(method.alpha_pattern),
        use_rslora=method.kind == "rslora",
        use_dora=method.kind == "dora",
    )


def _exact_lengths(adapted: Any) -> None:
    """Sets DoRA's lengths to those of the base's rows, which peft has rounded to the base's format.

    B is zero at first, so that the base's rows are all there is.
    """
    for layer in adapted.modules():
        if isinstance(layer, LoraLayer):
            for vector in layer.lora_magnitude_vector.values():
                weight = dequantize_module_weight(layer.get_base_layer()).float()
                vector.weight.data = torch.linalg.norm(weight, dim=1)


def _check_modules(model: Any, method: MethodConfig) -> None:
    names = {part for name, _ in model.named_modules() for part in (name, name.rpartition(".")[2])}
    linear = ", ".join(_linear_names(model))
    problems = [
        Problem(where=f"method.{key}", what=f"the model has no module `{name}`.", fix=f"Linear ones: {linear}.")
        for key, wanted in (("target_modules", method.target_modules), ("modules_to_save", method.modules_to_save))
        for name in wanted
        if name not in names and name != ALL_LINEAR
    ]
    if problems:
        raise UserError(problems)


def _linear_names(model: Any) -> list[str]:
    """Returns the last names of all linear layers but the output layer."""
    head = model.score if gives_scores(model) else model.get_output_embeddings()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return sorted({name.rpartition(".")[2] for name, module in layers.items() if module is not head})


def gives_scores(model: Any) -> bool:
    """Says whether a transformers model gives a score for a row, as reward models do."""
    return model.get_output_embeddings() is None


def leave_casting_to_autocast(adapted: Any) -> None:
    """Keeps peft from casting the inputs of adapters to their float32: autocast would cast them back, bit for bit.

    Args:
        adapted: A peft model, from now on computed under autocast only.
    """
    for layer in adapted.modules():
        # DoRA computes lengths of rows from its inputs, which autocast does not touch.
        if isinstance(layer, LoraLayer) and not layer.lora_magnitude_vector:
            layer.cast_input_dtype_enabled = False


def _trainable_in_float32(adapted: Any) -> Any:
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted
