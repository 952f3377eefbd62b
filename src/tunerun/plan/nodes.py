"""What a plan asks of each node of a cluster that is not this machine."""

from __future__ import annotations

from dataclasses import replace

from tunerun.config.checks import size_bytes
from tunerun.config.schema import RunConfig
from tunerun.machine import Machine
from tunerun.plan.plan import Plan
from tunerun.plan.steps import EvalStep, ServeStep, TrainStep, VerifyStep

QUEUED_CLUSTERS = ("slurm", "skypilot")
"""Clusters that another program starts the run on."""
SKYPILOT_GPUS = {
    "b200": "B200",
    "h200": "H200",
    "h100-80g": "H100",
    "a100-80g": "A100-80GB",
    "a100-40g": "A100",
    "a6000": "A6000",
    "a10g": "A10G",
    "a10": "A10",
    "l40s": "L40S",
    "l4": "L4",
    "rtx5090": "RTX5090",
    "rtx4090": "RTX4090",
    "rtx3090": "RTX3090",
    "t4": "T4",
    "v100-16g": "V100",
    "v100-32g": "V100-32GB",
}
"""What SkyPilot calls a GPU, by the name `hardware.gpu` takes (its `sky gpus list`)."""
_CPUS_PER_PROCESS = 8


def cpus(config: RunConfig) -> int:
    """Returns the CPUs that are asked for on each node; a plan made elsewhere counts on as many."""
    if config.cluster.cpus is not None:
        return config.cluster.cpus
    return (config.hardware.processes or 1) * (config.hardware.threads or _CPUS_PER_PROCESS)


def gpus(plan: Plan) -> int:
    """Returns the GPUs that are asked for on each node."""
    placed = [step for step in plan.steps if isinstance(step, TrainStep | EvalStep | VerifyStep | ServeStep)]
    return max((step.placement.processes for step in placed if step.placement.device == "cuda"), default=0)


def node(config: RunConfig, machine: Machine) -> Machine:
    """Returns the machine that a plan is made for: this one, or what a node of the cluster is asked to give."""
    if config.cluster.kind not in QUEUED_CLUSTERS:
        return machine
    memory = machine.memory_bytes if config.cluster.memory is None else size_bytes(config.cluster.memory)
    return replace(machine, cores=cpus(config), memory_bytes=memory)
