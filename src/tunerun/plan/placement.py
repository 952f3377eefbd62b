"""What processes compute on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tunerun.machine import Machine
from tunerun.strategies import Strategy

LOGITS_BYTES = {"cpu": 64 << 20, "cuda": 256 << 20}
"""Logits that a loss holds at a time, in float32: large enough for efficient products, small beside any model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """What a step's processes compute on."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Kind of device."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """Number format of the computation."""
    threads: int = 1
    """CPU threads for each process; results differ in bits between thread counts."""
    strategy: Strategy = "single"
    """How the processes share the model."""
    processes: int = 1
    """Processes on each node."""
    nodes: int = 1
    """Machines."""
    offload: bool = False
    """Whether optimiser state is kept in host memory."""
    devices: tuple[str, ...] = ()
    """GPUs that the processes of a node may use; all that are visible when empty."""

    @property
    def world_size(self) -> int:
        """Number of processes on all nodes."""
        return self.processes * self.nodes


def whole_machine(machine: Machine) -> Placement:
    """Returns where one process runs that has the machine to itself: on a GPU when there is one, with all cores."""
    gpu = machine.gpus[0] if machine.gpus else None
    return Placement(
        device="cpu" if gpu is None else "cuda",
        precision="bf16" if gpu is not None and gpu.bf16 else "fp32",
        threads=machine.cores,
    )
