"""The frozen base model of a sweep's trials: held by the process that they are copies of, and loaded by none of them.

Its pages are shared by all copies, for an adapter's training writes none of them.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunerun.base_model import BaseModel
from tunerun.config.schema import ADAPTER_METHODS
from tunerun.models import load
from tunerun.models.attention import SEGMENTS
from tunerun.plan.steps import EvalStep, TrainStep, quantisation_of

# A base that is not updated loses nothing further by being rounded once to the computation's format.
FROZEN_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Held:
    base: BaseModel
    options: Mapping[str, Any]
    """With which it was loaded."""
    model: Any


_held: list[_Held] = []
"""One at most."""


def hold(step: TrainStep | EvalStep, base: BaseModel) -> None:
    """Loads the base of a step that leaves it as it is, unless it is there; another one makes room for it.

    Does nothing for other steps. Computes in one thread: a copy would wait in vain for those of OpenMP.

    Args:
        step: What a copy will do next.
        base: The base model of its run.

    Raises:
        StageError: The weights are damaged or do not fit the config.
    """
    if any(held.base != base for held in _held):
        # Also for a step that holds none: its files may have changed since.
        _held.clear()
    if not _leaves_base(step) or load.is_quantised(base.folder):
        return
    options = _options(
        dtype=FROZEN_DTYPES[step.placement.precision],
        device=step.placement.device,
        attention=SEGMENTS,
        trust_remote_code=False,
    )
    if any(held.options == options for held in _held):
        return
    _held.clear()
    # What is frozen is never collected, so that a collection in a copy does not touch, and copy, its pages.
    gc.unfreeze()
    gc.collect()
    torch.set_num_threads(1)
    _held.append(_Held(base=base, options=options, model=load.load_model(base.folder, **options)))
    gc.collect()
    gc.freeze()


def load_model(folder: Path, **options: Any) -> Any:
    """Does what `load.load_model` does; what is held is given away, once."""
    if any(held.base.folder == folder and held.options == _options(**options) for held in _held):
        return _held.pop().model
    return load.load_model(folder, **options)


def _leaves_base(step: TrainStep | EvalStep) -> bool:
    """Says whether a step puts an adapter on the base as it is stored, loaded on a CPU by code of the library's."""
    if isinstance(step, TrainStep):
        # A score's head is drawn when the base is loaded.
        is_adapter = step.method.kind in ADAPTER_METHODS and step.objective.kind != "reward"
        quantisation = quantisation_of(step.method)
    else:
        is_adapter, quantisation = step.adapter is not None, step.quantisation
    is_stored = quantisation is None and step.model.init != "random"
    return is_adapter and is_stored and step.placement.device == "cpu" and not step.model.trust_remote_code


def _options(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
