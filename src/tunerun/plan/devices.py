"""Facts of GPUs by the name `hardware.gpu` takes, so that a plan can be made for a machine that is elsewhere."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tunerun.config import typed
from tunerun.errors import Problem, UserError
from tunerun.machine import Gpu, Machine

_GIB = 1 << 30
# fp32 multiply-adds of one core with AVX2, as measured for matrix products of 256 to 1024 on server CPUs.
_CORE_FLOPS = 50e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """What one process computes on."""

    name: str
    """As `hardware.gpu` takes it, or as the driver says it; `cpu` for a CPU."""
    memory_bytes: int
    """Memory of the device."""
    bf16: bool
    """Whether it multiplies bf16 matrices in hardware."""
    flops: float | None
    """Dense bf16 (fp16 without bf16, fp32 on a CPU) operations in a second by its data sheet; None when unknown."""


def _device(name: str, memory_gib: float, tflops: float, *, bf16: bool = True) -> Device:
    return Device(name=name, memory_bytes=int(memory_gib * _GIB), bf16=bf16, flops=tflops * 1e12)


# NVIDIA's data sheets, tensor cores with fp32 accumulation, without sparsity (the sheets of Hopper, Ada and L-series
# state the figure with sparsity, which is twice that). Memory as the driver reports it.
DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        _device("b200", 178, 2250),
        _device("h200", 140, 989),
        _device("h100-80g", 79.6, 989),
        _device("h100-pcie-80g", 79.6, 756),
        _device("h20-96g", 95.6, 148),
        _device("a100-80g", 79.3, 312),
        _device("a100-40g", 39.4, 312),
        _device("a800-80g", 79.3, 312),
        _device("a6000", 47.5, 154.8),
        _device("a10g", 22.3, 70),
        _device("a10", 22.3, 125),
        _device("l40s", 44.7, 362),
        _device("l4", 22.3, 121),
        _device("rtx5090", 31.8, 209.5),
        _device("rtx4090", 23.5, 165.2),
        _device("rtx3090", 23.6, 71),
        _device("rtx3060-12g", 11.8, 25.5),
        _device("t4", 14.6, 65, bf16=False),
        _device("v100-16g", 15.8, 125, bf16=False),
        _device("v100-32g", 31.7, 125, bf16=False),
    )
}


def find(name: str) -> Device:
    """Returns the device with a name of the table.

    Raises:
        UserError: The table has no such device.
    """
    if name in DEVICES:
        return DEVICES[name]
    problem = Problem(
        where="hardware.gpu",
        what=f"there are no facts for a device {name!r}.",
        fix=typed.nearest(name, sorted(DEVICES)),
    )
    raise UserError(problem)


def of_gpu(gpu: Gpu) -> Device:
    """Returns the facts of a GPU of this machine; its speed is None when the table does not know it."""
    name = re.sub(r"rtx (\d)", r"rtx\1", gpu.name.lower())
    words = set(re.split(r"[^a-z0-9]+", name))
    known = [device for device in DEVICES.values() if device.name.split("-")[0] in words]
    if "pcie" in words:
        known.sort(key=lambda device: "pcie" not in device.name)
    else:
        known = [device for device in known if "pcie" not in device.name]
    return Device(
        name=gpu.name,
        memory_bytes=gpu.memory_bytes,
        bf16=gpu.bf16,
        flops=known[0].flops if known else None,
    )


def of_cpu(machine: Machine, processes: int) -> Device:
    """Returns the share of this machine's cores and memory that each of some processes has."""
    return Device(
        name="cpu",
        memory_bytes=machine.memory_bytes // processes,
        bf16=False,
        flops=machine.cores * _CORE_FLOPS / processes,
    )
