"""How well the machine is used."""

from __future__ import annotations

import importlib.util
import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_RUSAGE_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024


def peak_memory_bytes(device: str) -> int:
    """Returns the most memory used so far: of the GPU, or of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    # Not ru_maxrss where there is this: on Linux it starts from that of the process that started this one.
    lines = _STATUS.read_text(encoding="utf-8").splitlines() if _STATUS.is_file() else []
    kib = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return 1024 * kib[0] if kib else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RUSAGE_UNIT_BYTES


def device_metrics(device: str) -> dict[str, float]:
    """Returns the peak memory and, on a GPU that NVML can ask, `gpu_utilisation`.

    The latter is the share of the last moments, of the driver's choice, in which some kernel ran.
    """
    found: dict[str, float] = {"peak_memory_bytes": peak_memory_bytes(device)}
    if device == "cuda" and importlib.util.find_spec("pynvml") is not None:
        found["gpu_utilisation"] = torch.cuda.utilization() / 100
    return found


def model_flops_utilisation(tokens_per_second: float, flops_per_token: float, device_flops: float) -> float:
    """Returns the share of the devices' peak that the model's own operations take.

    What is computed twice to save memory does not count (Chowdhery et al. 2022, "PaLM", appendix B).

    Args:
        tokens_per_second: Over all devices.
        flops_per_token: Forward and backward pass of one trained token.
        device_flops: Peak of all devices, operations in a second.
    """
    return tokens_per_second * flops_per_token / device_flops
