"""DeepSpeed's config for a training that ZeRO shares out."""

from __future__ import annotations

from typing import Any

from tunerun.plan.steps import ZERO_STAGES, Placement


def deepspeed_config(placement: Placement, *, max_grad_norm: float | None) -> dict[str, Any]:
    """Returns what DeepSpeed is told; empty for other strategies.

    What it would do of itself and tunerun does is turned off: it has no optimiser, no schedule and no batches of its
    own, and `train.global_batch_size` is cut by the loop, so that the sizes here are one micro-batch of one row.

    Args:
        placement: Strategy, device, precision and offload.
        max_grad_norm: Gradients are scaled down to this L2 norm; None leaves them as they are.
    """
    if placement.strategy not in ZERO_STAGES:
        return {}
    zero: dict[str, Any] = {"stage": ZERO_STAGES[placement.strategy]}
    if placement.strategy != "zero3":
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
    return config
