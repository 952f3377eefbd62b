"""accelerate's config: written for a plan, and read from a user's file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tunerun.config.schema import RunConfig
from tunerun.errors import Problem
from tunerun.plan.placement import Placement
from tunerun.plan.steps import TrainStep
from tunerun.strategies import ZERO_STAGES, Strategy

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


def launch_files(step: TrainStep) -> dict[str, Mapping[str, Any]]:
    """Returns what the processes of a training are told, by the name of the file that keeps it."""
    files: dict[str, Mapping[str, Any]] = {}
    if step.placement.world_size > 1:
        files["accelerate.yaml"] = accelerate_config(step.placement)
    if step.deepspeed:
        files["deepspeed.json"] = step.deepspeed
    return files


def deepspeed_file(content: Mapping[str, Any]) -> str | None:
    """Returns the DeepSpeed config that an accelerate config names, which then says what DeepSpeed does."""
    found = _section(content, "deepspeed_config").get("deepspeed_config_file")
    return None if found is None else str(found)


def with_accelerate(
    config: RunConfig, content: Mapping[str, Any], own: Mapping[str, Any] | None = None
) -> tuple[RunConfig, list[Problem]]:
    """Takes over what an accelerate config says of processes, strategy and precision.

    Args:
        config: Its hardware section leaves them open.
        content: Of the file; keys that are about anything else are accelerate's own business.
        own: Content of the DeepSpeed config that it names; None when it names none.

    Returns:
        The config, and what of the file cannot be done.
    """
    problems = [*_said_twice(config), *_named_twice(config, content), *_not_counted(content)]
    strategy, found = _strategy(content, own)
    problems += found
    half = own is not None and _section(own, "bf16").get("enabled") is True
    precision = _word(content.get("mixed_precision", "bf16" if half else "no"))
    if precision not in _PRECISIONS:
        fix = "Set mixed_precision to bf16 or no."
        problems.append(Problem(where=_WHERE, what=f"mixed_precision {precision} is not trained in.", fix=fix))
    if problems or strategy is None:
        return config, problems
    machines, processes = content.get("num_machines", 1), content.get("num_processes", 1)
    if processes % machines:
        what = f"num_processes {processes} cannot be divided among {machines} machines."
        return config, [Problem(where=_WHERE, what=what)]
    hardware = replace(
        config.hardware,
        strategy=strategy,
        processes=processes // machines,
        precision="bf16" if precision == "bf16" else "fp32",
        device="cpu" if content.get("use_cpu") else config.hardware.device,
        offload=_offloads(content, own),
        deepspeed=deepspeed_file(content) or config.hardware.deepspeed,
    )
    return replace(config, hardware=hardware, cluster=replace(config.cluster, nodes=machines)), []


def _said_twice(config: RunConfig) -> list[Problem]:
    hardware = config.hardware
    keys = {
        "hardware.strategy": hardware.strategy != "single",
        "hardware.processes": hardware.processes is not None,
        "hardware.precision": hardware.precision != "auto",
        "hardware.offload": hardware.offload,
        "cluster.nodes": config.cluster.nodes != 1,
    }
    return [
        Problem(where=_WHERE, what=f"{key} is set too.", fix="Say it in one of the two.")
        for key, is_set in keys.items()
        if is_set
    ]


def _named_twice(config: RunConfig, content: Mapping[str, Any]) -> list[Problem]:
    typed, named = config.hardware.deepspeed, deepspeed_file(content)
    if typed is None or named is None or typed == named:
        return []
    what = f"is {typed}, and {config.hardware.accelerate} names {named}."
    return [Problem(where="hardware.deepspeed", what=what, fix="Name one of the two.")]


def _not_counted(content: Mapping[str, Any]) -> list[Problem]:
    counts = {key: content.get(key, 1) for key in ("num_machines", "num_processes")}
    return [
        Problem(where=_WHERE, what=f"{key} is {value!r}.", fix="Set it to a number from 1.")
        for key, value in counts.items()
        if not isinstance(value, int) or isinstance(value, bool) or value < 1
    ]


def _word(value: Any) -> str:
    """Returns a word of the file; without quotes YAML reads `no` as false."""
    return "no" if value is False else str(value)


def _strategy(content: Mapping[str, Any], own: Mapping[str, Any] | None) -> tuple[Strategy | None, list[Problem]]:
    kind = _word(content.get("distributed_type", "NO"))
    kind = "NO" if kind == "no" else kind
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
    told = _section(own or {}, "zero_optimization").get("stage", "auto")
    stage = stage if told == "auto" else told
    if not isinstance(stage, int) or stage not in stages:
        fix = "Set deepspeed_config.zero_stage to 1, 2 or 3."
        return None, [Problem(where=_WHERE, what=f"zero_stage {stage} is not one of DeepSpeed's.", fix=fix)]
    return stages[stage], []


def _offloads(content: Mapping[str, Any], own: Mapping[str, Any] | None) -> bool:
    device = _section(content, "deepspeed_config").get("offload_optimizer_device", "none")
    told = _section(_section(own or {}, "zero_optimization"), "offload_optimizer").get("device", "auto")
    device = device if told == "auto" else told
    return device == "cpu" or bool(_section(content, "fsdp_config").get("fsdp_offload_params", False))


def _section(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = content.get(name)
    return found if isinstance(found, Mapping) else {}
