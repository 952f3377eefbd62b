"""Keys of the sections `hardware`, `cluster` and `env`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tunerun.config.schema.kinds import Strategy, used_by


@dataclass(frozen=True, kw_only=True, slots=True)
class HardwareConfig:
    """What to compute on."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes CUDA GPUs when there are any."""
    gpu: str | None = None
    """Plan for this device (`h200`, `a100-80g`, `rtx4090`, ...) instead of the machine's own."""
    strategy: Strategy = "single"
    """How several processes share the model."""
    processes: int | None = None
    """Number of training processes on a node; null takes one for each visible GPU (1 for `single`)."""
    devices: tuple[str, ...] = ()
    """GPUs to use, by index or UUID; [] takes all that are visible."""
    offload: bool = used_by("zero2", "zero3", "fsdp2", by="strategy", default=False)
    """Keep optimiser state (zero3, fsdp2: parameters too) in host memory."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the computation; `auto` is bf16 on GPUs that have it, fp32 elsewhere."""
    threads: int | None = None
    """CPU threads for each process; null takes cores / processes."""
    deepspeed: str | None = used_by("zero1", "zero2", "zero3", by="strategy", default=None)
    """A DeepSpeed config (JSON) of your own; what it says goes before what tunerun would set."""
    accelerate: str | None = None
    """A config file of accelerate's (YAML) that says strategy, processes and precision instead of the keys here."""
    max_restarts: int = 0
    """How often a training whose process dies is started again from its newest checkpoint."""
    stall_seconds: float | None = 1800.0
    """Several processes are given up when none of them has told of a step for so long; null waits for ever."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """Where processes are placed."""

    kind: Literal["local", "multi_node", "slurm", "skypilot"] = "local"
    """Who starts them."""
    nodes: int = used_by("multi_node", "slurm", "skypilot", default=1)
    """Number of machines."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportEnvConfig:
    """Where quantisers are installed."""

    python: str | None = None
    """Interpreter of an environment with gptqmodel; null takes tunerun's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvConfig:
    """Where things are kept on this machine."""

    cache_dir: str | None = None
    """Folder for downloaded models; null takes the hub's own (HF_HOME)."""
    export: ExportEnvConfig = ExportEnvConfig()
    """For the export stage."""
