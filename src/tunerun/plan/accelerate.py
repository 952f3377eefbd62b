"""accelerate's config: written for a plan, and read from a user's file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tunerun.config.schema import RunConfig, Strategy
from tunerun.errors import Problem
from tunerun.plan.steps import ZERO_STAGES, Placement

_WHERE = "hardware.accelerate"
_KINDS = {"NO": "single", "MULTI_GPU": "ddp", "MULTI_CPU": "ddp", "FSDP": "fsdp2", "DEEPSPEED": "zero"}
_PRECISIONS = {"no": "fp32", "bf16": "bf16"}


def accelerate_config(placement: Placement) -> dict[str, Any]:
    """Returns what `accelerate launch --config_file` has to be told to start the ranks of a placement by hand."""
    kind = {"single": "NO", "ddp": "MULTI_CPU" if placement.device == "cpu" else "MULTI_GPU", "fsdp2": "FSDP"}
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": kind.get(placement.strategy, "DEEPSPEED"),
        "mixed_precision": "bf16" if placement.precision == "bf16" else "no",
        "num_machines": placement.nodes,
        "num_processes": placement.world_size,
        "machine_rank": 0,
        "use_cpu": placement.device == "cpu",
    }
    if placement.strategy in ZERO_STAGES:
        config["deepspeed_config"] = {
            "zero_stage": ZERO_STAGES[placement.strategy],
            "offload_optimizer_device": "cpu" if placement.offload else "none",
            "offload_param_device": "cpu" if placement.offload and placement.strategy == "zero3" else "none",
        }
    if placement.strategy == "fsdp2":
        config["fsdp_config"] = {"fsdp_version": 2, "fsdp_offload_params": placement.offload}
    return config


def with_accelerate(config: RunConfig, content: Mapping[str, Any]) -> tuple[RunConfig, list[Problem]]:
    """Takes over what an accelerate config says of processes, strategy and precision.

    Args:
        config: Its hardware section leaves them open.
        content: Of the file; keys that are about anything else are accelerate's own business.

    Returns:
        The config, and what of the file cannot be done.
    """
    problems = [
        Problem(where=_WHERE, what=f"hardware.{key} is set too.", fix="Say it in one of the two.")
        for key, value in (("strategy", config.hardware.strategy != "single"), ("processes", config.hardware.processes))
        if value
    ]
    machines = int(content.get("num_machines", 1))
    processes = int(content.get("num_processes", 1))
    strategy, found = _strategy(content)
    problems += found
    precision = str(content.get("mixed_precision", "no"))
    if precision not in _PRECISIONS:
        fix = "Set mixed_precision to bf16 or no."
        problems.append(Problem(where=_WHERE, what=f"mixed_precision {precision} is not trained in.", fix=fix))
    if processes % machines:
        what = f"num_processes {processes} cannot be divided among {machines} machines."
        problems.append(Problem(where=_WHERE, what=what))
    if problems or strategy is None:
        return config, problems
    hardware = replace(
        config.hardware,
        strategy=strategy,
        processes=processes // machines,
        precision="bf16" if precision == "bf16" else "fp32",
        device="cpu" if content.get("use_cpu") else config.hardware.device,
        offload=_offloads(content),
        deepspeed=_section(content, "deepspeed_config").get("deepspeed_config_file", config.hardware.deepspeed),
    )
    return replace(config, hardware=hardware, cluster=replace(config.cluster, nodes=machines)), []


def _strategy(content: Mapping[str, Any]) -> tuple[Strategy | None, list[Problem]]:
    kind = str(content.get("distributed_type", "NO"))
    if kind not in _KINDS:
        fix = f"Known: {', '.join(_KINDS)}."
        return None, [Problem(where=_WHERE, what=f"distributed_type {kind} is not known.", fix=fix)]
    if kind == "FSDP" and _section(content, "fsdp_config").get("fsdp_version", 1) != 2:
        return None, [Problem(where=_WHERE, what="it asks for the first FSDP.", fix="Set fsdp_version: 2.")]
    if kind != "DEEPSPEED":
        found: dict[str, Strategy] = {"single": "single", "ddp": "ddp", "fsdp2": "fsdp2"}
        return found[_KINDS[kind]], []
    stages = {stage: name for name, stage in ZERO_STAGES.items()}
    stage = _section(content, "deepspeed_config").get("zero_stage")
    if stage not in stages:
        fix = "Set deepspeed_config.zero_stage to 1, 2 or 3."
        return None, [Problem(where=_WHERE, what=f"zero_stage {stage} is not one of DeepSpeed's.", fix=fix)]
    return stages[stage], []


def _offloads(content: Mapping[str, Any]) -> bool:
    deepspeed = _section(content, "deepspeed_config").get("offload_optimizer_device", "none")
    return deepspeed == "cpu" or bool(_section(content, "fsdp_config").get("fsdp_offload_params", False))


def _section(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = content.get(name)
    return found if isinstance(found, Mapping) else {}
