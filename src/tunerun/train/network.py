"""What is trained: the model as the method wants it, and how its weights are written."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tunerun import artifacts
from tunerun.base_model import BaseModel
from tunerun.chat.template import load_template
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.config.schema import ADAPTER_METHODS, MethodConfig
from tunerun.errors import Problem, UserError
from tunerun.models import adapters, held, load, pissa, vocabulary
from tunerun.models.attention import SEGMENTS
from tunerun.models.folder import set_chat_template
from tunerun.plan.steps import TrainStep, quantisation_of
from tunerun.strategies import SHARDED_STRATEGIES
from tunerun.train.checkpoint import Checkpoint
from tunerun.train.engines.engine import Settle, settled

_MODEL = artifacts.CHECKPOINT_MODEL

Save = Callable[[Path, Mapping[str, Tensor]], None]
"""Writes into a folder, given whole weights by their names in the module."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """A model to train."""

    module: Any
    """The transformers model, adapter layers included."""
    save_checkpoint: Save
    """Writes the trained weights into a checkpoint's staging folder, in the precision that is trained."""
    save: Save
    """Writes the result of the training: an adapter, or a complete model folder."""
    adapter: bool
    """Whether these take the trainable weights alone, or all of the module's."""
    save_merged: Callable[[Path], None] | None = None
    """Of a reward model with an adapter, which no later stage merges: writes the complete model folder."""
    rate_factors: Mapping[str, float] = field(default_factory=dict)
    """Learning rates of parameters as multiples of the schedule's, by name; 1 where a name is missing."""
    settle: Settle = settled
    """See `Parts.settle`."""


def build(step: TrainStep, base: BaseModel, found: Checkpoint | None) -> Network:
    """Loads the model of a training and makes the method's weights trainable.

    Args:
        step: What to train and how.
        base: The base model.
        found: The checkpoint to go on from.

    Raises:
        UserError: A named module or weight does not exist, or the adapter to go on with does not fit.
        StageError: The weights are damaged or do not fit the config.
    """
    if step.method.kind not in ADAPTER_METHODS:
        return _whole(step, base, found)
    module = _weights(step, base.folder, held.FROZEN_DTYPES[step.placement.precision], resumed=False)
    known_tokens = vocabulary.grow_to_tokenizer(module, base.folder) if step.model.resize_embeddings else None
    adapted, initial = _adapter(step, module, found, known_tokens)
    if step.placement.precision == "bf16":
        adapters.leave_casting_to_autocast(adapted)
    quantisation = quantisation_of(step.method)
    save = partial(adapters.save_adapter, adapted, base_name=base.path, initial=initial, quantisation=quantisation)
    return Network(
        module=adapted.get_base_model(),
        save_checkpoint=lambda folder, weights: save(folder / artifacts.ADAPTER, weights),
        save=save,
        adapter=True,
        save_merged=(lambda folder: _merged(adapted, folder, step, base)) if step.objective.kind == "reward" else None,
        rate_factors=_rate_factors(step.method, adapted.get_base_model()),
    )


def _whole(step: TrainStep, base: BaseModel, found: Checkpoint | None) -> Network:
    source = base.folder if found is None else found.folder / _MODEL
    stored = load.saved_dtype(base.folder)
    in_files = _left_in_files(step, source) if found is None else None
    module = _weights(step, source, torch.float32, resumed=found is not None) if in_files is None else in_files
    grows = found is None and step.model.resize_embeddings
    known_tokens = vocabulary.grow_to_tokenizer(module, base.folder) if grows else None
    if step.method.kind == "freeze":
        freeze(module, step.method)
    if known_tokens is not None:
        _check_new_rows(module)
    # Kept as they are stored where that is all the computation needs: they come out as they went in.
    kept = step.placement.precision == "bf16" and stored == torch.bfloat16
    settle = partial(_settle, frozen=stored if kept else torch.float32)
    if step.placement.strategy not in SHARDED_STRATEGIES:
        settle(module)
    write = partial(load.save_model, module, base=base.folder, max_shard_size_bytes=step.max_shard_size_bytes)
    return Network(
        module=module,
        save_checkpoint=lambda folder, weights: write(folder / _MODEL, weights, dtype=torch.float32),
        save=lambda folder, weights: _complete(partial(write, weights=weights), folder, stored, step, base),
        adapter=False,
        settle=settle,
    )


def _left_in_files(step: TrainStep, folder: Path) -> Any | None:
    """Loads a model that ranks are to share out, whose weights are mapped and not read yet.

    Returns:
        The model in the number format of its files; None when that would not come to the same numbers.
    """
    if step.placement.strategy not in SHARDED_STRATEGIES or step.objective.kind == "reward":
        return None
    dtype = load.dtype_in_files(folder)
    if dtype is None or step.model.init == "random" or step.model.resize_embeddings:
        return None
    module = _weights(step, folder, dtype, resumed=False)
    # What a model computes from its config would be rounded: Gemma's factor of the embeddings, say.
    rounded = any(value.is_floating_point() and value.dtype != torch.float32 for value in module.buffers())
    return None if rounded else module


@torch.no_grad()
def _settle(part: nn.Module, *, frozen: torch.dtype) -> None:
    for parameter in part.parameters():
        wanted = torch.float32 if parameter.requires_grad else frozen
        if parameter.dtype != wanted:
            parameter.data = parameter.data.to(wanted)


def freeze(module: Any, method: MethodConfig) -> None:
    """Leaves only the last decoder layers and the weights named by patterns trainable.

    Args:
        module: A transformers model.
        method: `layers` and `patterns`.

    Raises:
        UserError: There are fewer layers, or a pattern matches no weight.
    """
    layers = module.get_decoder().layers
    names = [name for name, _ in module.named_parameters()]
    problems = [
        Problem(where="method.patterns", what=f"no weight is named like `{pattern}`.", fix=f"Names: {names[0]}, ...")
        for pattern in method.patterns
        if not fnmatch.filter(names, pattern)
    ]
    if method.layers > len(layers):
        what = f"{method.layers} layers are more than the model's {len(layers)}."
        problems.append(Problem(where="method.layers", what=what, fix="Choose fewer, or method=full."))
    if problems:
        raise UserError(problems)
    last = {id(weight) for layer in layers[len(layers) - method.layers :] for weight in layer.parameters()}
    for name, parameter in module.named_parameters():
        chosen = id(parameter) in last or any(fnmatch.fnmatchcase(name, pattern) for pattern in method.patterns)
        parameter.requires_grad_(chosen)


def _check_new_rows(module: Any) -> None:
    left = [name for name, weight in vocabulary.matrices(module).items() if not weight.requires_grad]
    if left:
        raise UserError(vocabulary.untrained_problem(left, "freeze leaves them as they are"))


def _complete(write: Callable[..., None], folder: Path, dtype: torch.dtype, step: TrainStep, base: BaseModel) -> None:
    write(folder, dtype=dtype)
    if step.model.chat_template is not None:
        template = load_template(base.folder, {}, step.model.chat_template)
        assert template is not None, "a named template is found or refused"
        set_chat_template(folder, template.text)


def _merged(adapted: Any, folder: Path, step: TrainStep, base: BaseModel) -> None:
    module, size = adapted.merge_and_unload(), step.max_shard_size_bytes
    state = module.state_dict()
    write = partial(load.save_model, module, weights=state, base=base.folder, max_shard_size_bytes=size)
    _complete(write, folder, load.saved_dtype(base.folder), step, base)


def _weights(step: TrainStep, folder: Path, dtype: torch.dtype, *, resumed: bool) -> Any:
    device = step.placement.device
    if step.objective.kind == "reward":
        return _scorer(step, folder, dtype, resumed=resumed)
    if step.model.init == "random" and not resumed:
        return load.random_model(folder, seed=step.seed, device=device, attention=SEGMENTS).to(dtype)
    return held.load_model(
        folder,
        dtype=dtype,
        device=device,
        attention=SEGMENTS,
        trust_remote_code=step.model.trust_remote_code,
        quantisation=quantisation_of(step.method),
    )


def _scorer(step: TrainStep, folder: Path, dtype: torch.dtype, *, resumed: bool) -> Any:
    """Loads a model with a fresh head for a score, or the one of a checkpoint."""
    torch.manual_seed(step.seed)
    device, remote = step.placement.device, step.model.trust_remote_code
    module = load.load_model(
        folder, dtype=dtype, device=device, attention=SEGMENTS, trust_remote_code=remote, head="score"
    )
    if not resumed:
        # transformers finds the last token of a padded row by it.
        module.config.pad_token_id = load_tokenizer(folder).token_id("pad_token")
    return module


def _adapter(
    step: TrainStep, module: Any, found: Checkpoint | None, known_tokens: int | None
) -> tuple[Any, dict[str, torch.Tensor] | None]:
    """Returns the model with its adapter, and PiSSA's initial factors when it is one."""
    method = step.method
    if method.kind == "pissa":
        adapted = adapters.add_adapter(module, method, seed=step.seed, known_tokens=known_tokens)
        if found is None:
            return adapted, pissa.start(adapted, iterations=method.pissa_iterations)
        return adapted, pissa.resume(adapted, load_file(found.folder / artifacts.ADAPTER / artifacts.ADAPTER_WEIGHTS))
    if found is not None:
        return adapters.load_adapter(module, found.folder / artifacts.ADAPTER, trainable=True), None
    if step.model.adapter is not None:
        adapters.check_kind(Path(step.model.adapter), method)
        if known_tokens is not None:
            adapters.check_new_rows(module, Path(step.model.adapter), known_tokens)
        print(f"going on with the adapter {step.model.adapter}, at its own rank and modules")
        return adapters.load_adapter(module, Path(step.model.adapter), trainable=True), None
    return adapters.add_adapter(module, method, seed=step.seed, known_tokens=known_tokens), None


def _rate_factors(method: MethodConfig, module: Any) -> dict[str, float]:
    """LoRA+: the B matrices move faster (Hayou et al. 2024, arXiv 2402.12354)."""
    if method.kind != "lora_plus":
        return {}
    names = (name for name, _ in module.named_parameters() if ".lora_B." in name or ".lora_embedding_B." in name)
    return dict.fromkeys(names, method.learning_rate_ratio)
