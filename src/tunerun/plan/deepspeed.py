"""DeepSpeed's config for a training that ZeRO shares out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunerun.errors import Problem
from tunerun.plan.placement import Placement
from tunerun.strategies import ZERO_STAGES

BUCKET_NUMBERS = 50_000_000
"""Gradients that travel at a time. DeepSpeed's own 500 million would take up to 4 GB of each GPU, however small the
model."""
WHOLE_NUMBERS = 100_000
"""ZeRO-3 leaves parameters of at most as many numbers whole in every process. It is DeepSpeed's own default."""

_BUCKET, _WHOLE = "reduce_bucket_size", "stage3_param_persistence_threshold"
_WHERE = "hardware.deepspeed"
# What tunerun does itself, or has keys of its own for.
_OURS = {
    "optimizer": "train.optimizer",
    "scheduler": "train.schedule",
    "fp16": "hardware.precision=bf16",
    "activation_checkpointing": "train.activation_checkpointing",
}
_OFFLOADS = ("offload_optimizer", "offload_param")
# Sizes that have to be as tunerun sets them; files made for other tools have them.
_IGNORED = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def deepspeed_config(
    placement: Placement, *, max_grad_norm: float | None, own: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns what DeepSpeed is told; empty for other strategies.

    What it would do of itself and tunerun does is turned off: it has no optimiser, no schedule and no batches of its
    own, and `train.global_batch_size` is cut by the loop, so that the sizes here are one micro-batch of one row.

    Args:
        placement: Strategy, device, precision and offload.
        max_grad_norm: Gradients are scaled down to this L2 norm; None leaves them as they are.
        own: Content of a user's file, in which `problems` finds nothing; goes before what is set here.
    """
    if placement.strategy not in ZERO_STAGES:
        return {}
    zero: dict[str, Any] = {"stage": ZERO_STAGES[placement.strategy], _BUCKET: BUCKET_NUMBERS}
    if placement.strategy == "zero3":
        zero[_WHOLE] = WHOLE_NUMBERS
    else:
        # Overlapping needs CUDA's streams, and gradients that are added up before they are reduced need stage 2.
        zero["overlap_comm"] = placement.strategy == "zero2" and placement.device == "cuda"
    if placement.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": placement.device == "cuda"}
        if placement.strategy == "zero3":
            zero["offload_param"] = {"device": "cpu", "pin_memory": placement.device == "cuda"}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # Micro-batches are accumulated until the loop says so: the last global batch of an epoch has fewer.
        "managed_gradient_accumulation": False,
        # Left out, gradients would be clipped to 1.
        "gradient_clipping": max_grad_norm or 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
    }
    if placement.precision == "bf16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    left_out = (*_IGNORED, *_OURS)
    return _merged(config, {key: value for key, value in _set(own or {}).items() if key not in left_out})


def sizes(config: Mapping[str, Any]) -> tuple[int, int]:
    """Returns how many gradients travel at a time, and the size of the largest parameter that ZeRO-3 leaves whole.

    Args:
        config: As `deepspeed_config` makes it; what DeepSpeed will refuse in a user's part of it is passed over.
    """
    zero = config["zero_optimization"] if config else {}
    set_here = zero if isinstance(zero, Mapping) else {}
    bucket, whole = (
        int(set_here[key]) if key in set_here and isinstance(set_here[key], int | float) else ours
        for key, ours in ((_BUCKET, BUCKET_NUMBERS), (_WHOLE, WHOLE_NUMBERS))
    )
    return bucket, whole


def problems(own: Mapping[str, Any], placement: Placement, *, max_grad_norm: float | None) -> list[Problem]:
    """Finds what a user's DeepSpeed config says otherwise than the run's own keys.

    Args:
        own: Content of the file.
        placement: What the keys say.
        max_grad_norm: As in `train.max_grad_norm`.
    """
    wanted = deepspeed_config(placement, max_grad_norm=max_grad_norm)
    own = _set(own)
    if found := _no_sections(own):
        return found
    found = [
        Problem(where=_WHERE, what=f"`{key}` is not DeepSpeed's to do here.", fix=f"Remove it; see {ours}.")
        for key, ours in _OURS.items()
        if key in own and not _is_off(key, own[key])
    ]
    if not wanted:
        fix = "Choose hardware=zero1, zero2 or zero3."
        return [Problem(where=_WHERE, what=f"{placement.strategy} does not run under DeepSpeed.", fix=fix), *found]
    zero, wanted_zero = own.get("zero_optimization", {}), wanted["zero_optimization"]
    checked = [
        ("zero_optimization.stage", zero.get("stage"), ZERO_STAGES[placement.strategy]),
        ("gradient_clipping", own.get("gradient_clipping"), wanted["gradient_clipping"]),
        ("bf16.enabled", own.get("bf16", {}).get("enabled"), placement.precision == "bf16"),
        *(
            (f"zero_optimization.{key}.device", zero.get(key, {}).get("device"), _device(wanted_zero.get(key, {})))
            for key in _OFFLOADS
        ),
    ]
    return found + [
        Problem(where=_WHERE, what=f"{key} is {value}, and the run's own keys make it {ours}.", fix="Let both agree.")
        for key, value, ours in checked
        if value is not None and value != ours
    ]


def _no_sections(own: Mapping[str, Any]) -> list[Problem]:
    """Finds sections of a file that are something else."""
    zero = own.get("zero_optimization", {})
    sections = {key: own[key] for key in ("zero_optimization", "bf16", "fp16") if key in own}
    if isinstance(zero, Mapping):
        sections |= {f"zero_optimization.{key}": zero[key] for key in _OFFLOADS if key in zero}
    return [
        Problem(where=_WHERE, what=f"{key} is {value!r}, and has to be a mapping.", fix="Write it in braces.")
        for key, value in sections.items()
        if not isinstance(value, Mapping)
    ]


def _is_off(key: str, section: Any) -> bool:
    # DeepSpeed leaves fp16 off unless it is told to; a file for the HF Trainer says `auto` beside its settings.
    return section == {"enabled": False} or (key == "fp16" and section.get("enabled") in (None, False))


def _device(offload: Mapping[str, Any]) -> str:
    return str(offload.get("device", "none"))


def _set(own: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out what is left open: files made for the HF Trainer say `auto`, and null is DeepSpeed's own default."""
    kept = {key: value for key, value in own.items() if value is not None and value != "auto"}
    return {key: _set(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


def _merged(ours: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(ours)
    for key, value in own.items():
        before = both.get(key)
        both[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, Mapping) else value
    return both
