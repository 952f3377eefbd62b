"""Keys of the sections `hardware`, `cluster` and `env`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tunerun.config.schema.kinds import used_by
from tunerun.strategies import Strategy


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
    """A config file of accelerate's (YAML) that says strategy, processes, precision, GPUs instead of the keys here."""
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
    rendezvous: str | None = used_by("multi_node", default=None)
    """`host:port` where the nodes meet: the node that has this name or address leads the others."""
    cpus: int | None = used_by("slurm", "skypilot", default=None)
    """CPUs of each node; null takes 8 for each process, or the threads of all where hardware.threads is set."""
    memory: str | None = used_by("slurm", "skypilot", default=None)
    """Memory of each node (`64GB`); null leaves it to the cluster."""
    time: str | None = used_by("slurm", default=None)
    """Time limit, `hours:minutes:seconds` or `days-hours:minutes`; null takes the partition's."""
    partition: str | None = used_by("slurm", default=None)
    """Partition to queue in; null takes the default one."""
    account: str | None = used_by("slurm", default=None)
    """Account that is charged."""
    qos: str | None = used_by("slurm", default=None)
    """Quality of service."""
    requeue: bool = used_by("slurm", default=True)
    """Queue the job again when it is preempted or reaches its time limit; it goes on from its checkpoint."""
    signal_seconds: int = used_by("slurm", default=300)
    """How long before the time limit training saves a checkpoint; Slurm may be up to 60 s early."""
    extra: tuple[str, ...] = used_by("slurm", default=())
    """More options for sbatch, such as `--constraint=h100`."""
    setup: tuple[str, ...] = used_by("slurm", "skypilot", default=())
    """Shell lines that each node runs first, such as `module load cuda`. No secrets: they are written into the job."""
    python: str | None = used_by("slurm", default=None)
    """Python on the nodes; null takes the one that submits."""
    infra: str | None = used_by("skypilot", default=None)
    """Where SkyPilot looks for machines (`aws`, `gcp/us-central1`, `k8s/context`); null takes the cheapest."""
    spot: bool = used_by("skypilot", default=False)
    """Take machines that can be taken away; the run goes on from its checkpoint where it has storage."""
    storage: str | None = used_by("skypilot", default=None)
    """Keeps the run directory: a volume, or a bucket (`s3://name`) for one node; null takes the machine's disk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportEnvConfig:
    """Where quantisers are installed."""

    python: str | None = None
    """Interpreter of an environment with gptqmodel (gptq) or llmcompressor (awq, fp8); null takes tunerun's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeEnvConfig:
    """Where inference servers are installed."""

    python: str | None = None
    """Interpreter of an environment with vLLM or LMDeploy; null takes tunerun's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvConfig:
    """Where things are kept on this machine."""

    cache_dir: str | None = None
    """Folder for downloaded models; null takes the hub's own (HF_HOME)."""
    export: ExportEnvConfig = ExportEnvConfig()
    """For the export stage."""
    serve: ServeEnvConfig = ServeEnvConfig()
    """For the serve stage, and for the gates of the verify stage that serve."""
