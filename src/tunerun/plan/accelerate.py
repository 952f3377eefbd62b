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
_MEETING = ("main_process_ip", "main_process_port")
_OFFLOADS = ("offload_optimizer_device", "offload_param_device")
# Of a file's keys those that are read, and those that only accelerate's own launcher has a use for.
_READ = (
    "distributed_type", "mixed_precision", "num_machines", "num_processes", "use_cpu", "gpu_ids",
    "compute_environment", "debug", "machine_rank", "main_training_function", "rdzv_backend", "same_network",
)  # fmt: skip
_SECTIONS = {
    "deepspeed_config": ("zero_stage", "deepspeed_config_file", "gradient_clipping", *_OFFLOADS),
    "fsdp_config": ("fsdp_version", "fsdp_offload_params", "fsdp_activation_checkpointing"),
}
_SECTION_OF = {"deepspeed_config": "DEEPSPEED", "fsdp_config": "FSDP"}


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
    """Takes over what an accelerate config says of processes, strategy, precision, devices and meeting place.

    Args:
        config: Leaves them open.
        content: Of the file; `notes` names the keys that are not read.
        own: Content of the DeepSpeed config that it names; None when it names none.

    Returns:
        The config, which names no such file any more, and what of the file cannot be done.
    """
    problems = [*_not_counted(content), *_said_twice(config, content), *_named_twice(config, content)]
    strategy, found = _strategy(content, own)
    problems += found
    half = own is not None and _section(own, "bf16").get("enabled") is True
    precision = _word(content.get("mixed_precision", "bf16" if half else "no"))
    if precision not in _PRECISIONS:
        fix = "Set mixed_precision to bf16 or no."
        problems.append(Problem(where=_WHERE, what=f"mixed_precision {precision} is not trained in.", fix=fix))
    if problems or strategy is None:
        return config, problems
    problems = _otherwise(config, strategy, content, own)
    machines, processes = content.get("num_machines", 1), content.get("num_processes", 1)
    if processes % machines:
        what = f"num_processes {processes} cannot be divided among {machines} machines."
        problems.append(Problem(where=_WHERE, what=what))
    if problems:
        return config, problems
    hardware = replace(
        config.hardware,
        strategy=strategy,
        processes=processes // machines,
        precision="bf16" if precision == "bf16" else "fp32",
        device="cpu" if content.get("use_cpu") else config.hardware.device,
        devices=_devices(content) or config.hardware.devices,
        offload=_offloads(strategy, content, own),
        deepspeed=deepspeed_file(content) or config.hardware.deepspeed,
        accelerate=None,
    )
    cluster, train = replace(config.cluster, nodes=machines), config.train
    if cluster.kind == "multi_node":
        cluster = replace(cluster, rendezvous=_rendezvous(content) or cluster.rendezvous)
    if _checkpoints_activations(content):
        train = replace(train, activation_checkpointing=True)
    return replace(config, hardware=hardware, cluster=cluster, train=train), []


def notes(content: Mapping[str, Any], config: RunConfig) -> list[str]:
    """Names what a file asks for that is not read.

    Args:
        content: Of the file, in which `with_accelerate` finds no problem.
        config: What came of it.
    """
    read = {*_READ, *(_MEETING if config.cluster.kind == "multi_node" else ())}
    keys = [key for key, value in content.items() if key not in (*read, *_SECTIONS) and not _is_empty(value)]
    for section, known in _SECTIONS.items():
        if _SECTION_OF[section] == _kind(content):
            inner = _section(content, section)
            keys += [f"{section}.{key}" for key, value in inner.items() if key not in known and not _is_empty(value)]
    return [f"of the accelerate config these are not read: {', '.join(keys)}"] if keys else []


def _said_twice(config: RunConfig, content: Mapping[str, Any]) -> list[Problem]:
    hardware, cluster = config.hardware, config.cluster
    devices, meets = _devices(content), _rendezvous(content)
    # A cluster's option may set it.
    machines = content.get("num_machines", 1)
    keys = {
        "hardware.strategy": hardware.strategy != "single",
        "hardware.processes": hardware.processes is not None,
        "hardware.precision": hardware.precision != "auto",
        "hardware.offload": hardware.offload,
        "hardware.devices": bool(devices and hardware.devices) and devices != hardware.devices,
        "train.activation_checkpointing": _checkpoints_activations(content)
        and config.train.activation_checkpointing is False,
        "cluster.rendezvous": meets is not None and cluster.rendezvous not in (None, meets),
    }
    found = [
        Problem(where=_WHERE, what=f"{key} is set too.", fix="Say it in one of the two.")
        for key, is_set in keys.items()
        if is_set
    ]
    if cluster.nodes not in (1, machines):
        what = f"num_machines is {machines}, and cluster.nodes is {cluster.nodes}."
        found.append(Problem(where=_WHERE, what=what, fix=f"Set cluster.nodes={machines}, or change the file."))
    return found


def _otherwise(
    config: RunConfig, strategy: Strategy, content: Mapping[str, Any], own: Mapping[str, Any] | None
) -> list[Problem]:
    """Finds what a file says of DeepSpeed otherwise than it would be done."""
    if strategy not in ZERO_STAGES:
        return []
    section, problems = _section(content, "deepspeed_config"), list[Problem]()
    clipping, ours = section.get("gradient_clipping"), config.train.max_grad_norm or 0.0
    if clipping not in (None, "none", "auto") and str(clipping) != str(ours) and clipping != ours:
        what = f"gradient_clipping is {clipping}, and train.max_grad_norm makes it {ours}."
        problems.append(Problem(where=_WHERE, what=what, fix="Let both agree."))
    devices = {key: section[key] for key in _OFFLOADS if section.get(key) is not None}
    for key, device in devices.items():
        if device not in ("none", "cpu"):
            what = f"{key} is {device}."
            problems.append(Problem(where=_WHERE, what=what, fix="Set it to cpu or none."))
    offloads = _offloads(strategy, content, own)
    parameters = devices.get("offload_param_device")
    if strategy == "zero3" and parameters in ("none", "cpu") and (parameters == "cpu") != offloads:
        what = "only one of optimiser state and parameters is offloaded, and ZeRO-3 offloads both here."
        fix = "Set offload_optimizer_device and offload_param_device to the same."
        problems.append(Problem(where=_WHERE, what=what, fix=fix))
    if strategy == "zero1" and offloads:
        what = "zero_stage 1 offloads nothing here."
        problems.append(Problem(where=_WHERE, what=what, fix="Set zero_stage: 2, or offload_optimizer_device: none."))
    return problems


def _devices(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the GPUs that a file chooses; empty for all."""
    chosen = content.get("gpu_ids")
    if chosen in (None, "all") or content.get("use_cpu"):
        return ()
    parts = chosen if isinstance(chosen, list) else str(chosen).split(",")
    return tuple(str(part).strip() for part in parts)


def _rendezvous(content: Mapping[str, Any]) -> str | None:
    host, port = (content.get(key) for key in _MEETING)
    return None if host is None or port is None else f"{host}:{port}"


def _checkpoints_activations(content: Mapping[str, Any]) -> bool:
    return _kind(content) == "FSDP" and bool(_section(content, "fsdp_config").get("fsdp_activation_checkpointing"))


def _is_empty(value: Any) -> bool:
    return value in (None, False, "", "no", "NO", {}, [])


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


def _kind(content: Mapping[str, Any]) -> str:
    kind = _word(content.get("distributed_type", "NO"))
    return "NO" if kind == "no" else kind


def _strategy(content: Mapping[str, Any], own: Mapping[str, Any] | None) -> tuple[Strategy | None, list[Problem]]:
    kind = _kind(content)
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


def _offloads(strategy: Strategy, content: Mapping[str, Any], own: Mapping[str, Any] | None) -> bool:
    if strategy not in ZERO_STAGES:
        # Sections for other kinds are not read by accelerate either.
        return strategy == "fsdp2" and bool(_section(content, "fsdp_config").get("fsdp_offload_params", False))
    device = _section(content, "deepspeed_config").get("offload_optimizer_device", "none")
    told = _section(_section(own or {}, "zero_optimization"), "offload_optimizer").get("device", "auto")
    return bool((device if told == "auto" else told) == "cpu")


def _section(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = content.get(name)
    return found if isinstance(found, Mapping) else {}
