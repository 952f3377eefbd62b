"""Builds the plan of a run from its config and the facts about machine, model and data. Pure: reads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tunerun.config.checks import size_bytes
from tunerun.config.data_sources import holds_out
from tunerun.config.schema import PAGED_OPTIMIZERS, ExportConfig, RunConfig
from tunerun.machine import Machine
from tunerun.plan import (
    answers,
    dataset,
    deepspeed,
    delivery,
    devices,
    estimate,
    generation,
    nodes,
    shape,
    verification,
)
from tunerun.plan.compiling import compiles
from tunerun.plan.dataset import DataSize
from tunerun.plan.devices import Device
from tunerun.plan.estimate import Estimate
from tunerun.plan.memory import STATE_BYTES, Work
from tunerun.plan.placement import Placement
from tunerun.plan.plan import Plan, Volume
from tunerun.plan.steps import (
    DataStep,
    EvalStep,
    ModelStep,
    Step,
    TrainStep,
    VerifyStep,
)
from tunerun.plan.verification import Verification

# Fewer optimiser steps than this rarely change a model.
_FEW_STEPS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the plan depends on besides the config."""

    machine: Machine
    data: DataSize | None
    """Size of the data, when it can be told without a download."""
    deepspeed: Mapping[str, Any] | None = None
    """Content of `hardware.deepspeed`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Decisions:
    """What the plan decides for the user."""

    train: Placement
    single: Placement
    micro_batch_size: int
    activation_checkpointing: bool
    compile: bool
    estimate: Estimate | None
    device_flops: float | None
    notes: tuple[str, ...]


def build(config: RunConfig, facts: Facts, notes: tuple[str, ...] = ()) -> Plan:
    """Builds the plan.

    Args:
        config: Checked, with `name` and `run_dir` filled in and local paths absolute.
        facts: About machine, device and data.
        notes: What was already decided, shown with the plan's own notes.
    """
    assert config.name is not None and config.run_dir is not None
    decided = _decide(config, replace(facts, machine=nodes.node(config, facts.machine)))
    volume = _volume(config, facts) if "train" in config.stages else None
    steps = _steps(config, decided, facts)
    return Plan(
        name=config.name,
        run_dir=config.run_dir,
        steps=steps,
        estimate=decided.estimate,
        volume=volume,
        verification=_verification(config, steps, facts.machine),
        notes=notes + decided.notes,
        warnings=_warnings(config, decided, volume),
    )


def _makes_scorer(config: RunConfig) -> bool:
    return "train" in config.stages and config.objective.kind == "reward"


def _decide(config: RunConfig, facts: Facts) -> _Decisions:
    device = _device(config, facts.machine)
    single = _single_placement(config, facts.machine, device)
    train = _train_placement(config, facts.machine, single)
    row_tokens = dataset.row_tokens(config, facts.data)
    found = _estimate(config, facts, train, device, row_tokens) if "train" in config.stages else None
    notes = dataset.length_notes(config, facts.data) if "train" in config.stages else []
    if "train" in config.stages:
        notes += generation.notes(config.train, config.eval, _volume(config, facts).optimiser_steps)
    if _makes_scorer(config):
        left_out = ", ".join(stage for stage in config.stages if stage in ("eval", "merge", "export", "verify"))
        notes.append(
            f"a reward model gives scores, not text: train writes it whole to merged/, and nothing runs of {left_out};"
            " train.eval_steps measures it on held-out pairs"
        )
    elif "merge" in config.stages and delivery.trains_weights(config):
        notes.append(f"method {config.method.kind} trains whole weights: nothing to merge, train writes merged/")
    if "merge" in config.stages and config.method.kind == "qlora" and config.export.merge_base is None:
        notes.append(
            "the adapter is merged into the base as training rounded it (export.merge_base=dequantised): that is the "
            "network that was trained; full_precision takes the original weights, to which the adapter was not fitted"
        )
    if found is not None and found.activation_checkpointing and config.train.activation_checkpointing is None:
        notes.append("activations are computed twice: without that the memory estimate does not fit the device")
    if train.strategy != config.hardware.strategy:
        without = "" if facts.deepspeed is None else ", and hardware.deepspeed is not read"
        notes.append(f"one process has nothing to share: {config.hardware.strategy} is trained as single{without}")
    half = facts.machine.cpu_bf16 and config.hardware.precision == "auto" and train.device == "cpu"
    if half and "train" in config.stages:
        notes.append("this CPU has bf16: hardware.precision=bf16 trains faster, with less exact sums than float32")
    if found is None and "train" in config.stages and config.train.micro_batch_size is None:
        notes.append("the model's shape is unknown, so there is no estimate and the micro-batch is 1")
    return _Decisions(
        train=train,
        single=single,
        micro_batch_size=found.micro_batch_size if found is not None else config.train.micro_batch_size or 1,
        activation_checkpointing=found is not None and found.activation_checkpointing,
        compile=compiles(config, train, found, _volume(config, facts).optimiser_steps),
        estimate=found,
        device_flops=None if device is None else device.flops,
        notes=tuple(notes),
    )


def _device(config: RunConfig, machine: Machine) -> Device | None:
    """Returns what a process computes on, or None for a GPU that nothing is known of."""
    hardware = config.hardware
    if hardware.gpu is not None:
        return devices.find(hardware.gpu)
    if hardware.device == "cuda" or (hardware.device == "auto" and machine.gpus):
        return devices.of_gpu(machine.gpus[0]) if machine.gpus else None
    return devices.of_cpu(machine, hardware.processes or 1)


def _single_placement(config: RunConfig, machine: Machine, device: Device | None) -> Placement:
    hardware = config.hardware
    on_gpu = device is None or device.name != "cpu"
    wants_bf16 = hardware.precision == "bf16" or (
        hardware.precision == "auto" and on_gpu and (device is None or device.bf16)
    )
    return Placement(
        device="cuda" if on_gpu else "cpu",
        precision="bf16" if wants_bf16 else "fp32",
        threads=hardware.threads or machine.cores,
        devices=hardware.devices,
    )


def _train_placement(config: RunConfig, machine: Machine, single: Placement) -> Placement:
    hardware = config.hardware
    processes = hardware.processes
    if processes is None:
        processes = 1 if hardware.strategy == "single" else max(len(machine.gpus), 1)
    alone = processes * config.cluster.nodes == 1 and not hardware.offload
    return replace(
        single,
        threads=hardware.threads or max(machine.cores // processes, 1),
        strategy="single" if alone else hardware.strategy,
        processes=processes,
        nodes=config.cluster.nodes,
        offload=hardware.offload,
    )


def _estimate(
    config: RunConfig, facts: Facts, placement: Placement, device: Device | None, row_tokens: int
) -> Estimate | None:
    if not shape.is_complete(config.model.shape):
        return None
    size = shape.sizes(config.model.shape)
    bucket, whole = deepspeed.sizes(_deepspeed(config, facts, placement))
    work = Work(
        objective=config.objective.kind,
        method=config.method.kind,
        rank=config.method.rank,
        target_modules=config.method.target_modules,
        modules_to_save=config.method.modules_to_save,
        rank_pattern=config.method.rank_pattern,
        bits=config.method.bits,
        double_quant=config.method.double_quant,
        layers=config.method.layers,
        patterns=config.method.patterns,
        row_tokens=row_tokens,
        global_batch_size=config.train.global_batch_size,
        precision=placement.precision,
        device=placement.device,
        strategy=placement.strategy,
        world_size=placement.world_size,
        offload=placement.offload,
        state_bytes=STATE_BYTES[config.train.optimizer] + (0.0 if config.train.ema_decay is None else 4.0),
        paged=config.train.optimizer in PAGED_OPTIMIZERS,
        bucket_numbers=bucket,
        whole_numbers=whole,
    )
    disk = estimate.disk(
        size,
        work,
        checkpoints=config.train.keep_checkpoints if config.train.checkpoint_steps is not None else 1,
        merged=delivery.trains_weights(config) or "merge" in config.stages,
        export=config.export if "export" in config.stages else ExportConfig(),
    )
    return estimate.estimate(
        size,
        work,
        device,
        disk=disk,
        micro_batch_size=config.train.micro_batch_size,
        activation_checkpointing=config.train.activation_checkpointing,
    )


def _verification(config: RunConfig, steps: tuple[Step, ...], machine: Machine) -> Verification | None:
    step = next((step for step in steps if isinstance(step, VerifyStep)), None)
    if step is None:
        return None
    known = shape.is_complete(config.model.shape)
    size = shape.sizes(config.model.shape) if known else None
    cpu = devices.of_cpu(machine, 1) if step.placement.device == "cpu" else None
    return verification.verification(step, size, config.export, cpu)


def _volume(config: RunConfig, facts: Facts) -> Volume:
    train, data, longest = config.train, facts.data, dataset.row_tokens(config, facts.data)
    if data is None:
        return Volume(rows=None, optimiser_steps=train.max_steps, tokens=None)
    held_out = config.data.eval_rows or round(data.rows * config.data.eval_fraction)
    rows = max(data.rows - held_out, 1)
    row_tokens = min(data.tokens // max(data.rows, 1), longest)
    samples = -(-rows * row_tokens // longest) if config.data.packing else rows
    steps = train.max_steps or max(round(samples * train.epochs / train.global_batch_size), 1)
    tokens = round(steps * train.global_batch_size * row_tokens * rows / samples)
    return Volume(rows=rows, optimiser_steps=steps, tokens=tokens)


def _steps(config: RunConfig, decided: _Decisions, facts: Facts) -> tuple[Step, ...]:
    steps: list[Step] = [] if config.model.path is None else [_model_step(config)]
    if "answer" in config.stages:
        steps.append(answers.step(config))
    if "data" in config.stages:
        steps.append(
            DataStep(
                data=config.data,
                objective=config.objective,
                chat_template=config.model.chat_template,
                seed=config.seed,
                cache_dir=config.env.cache_dir,
                answers="answer" in config.stages,
            )
        )
    if "train" in config.stages:
        steps.append(_train_step(config, decided, facts))
    if _makes_scorer(config):
        return tuple(steps)
    if "eval" in config.stages:
        steps.append(_eval_step(config, decided))
    gpu_bytes = tuple(gpu.memory_bytes for gpu in facts.machine.gpus)
    steps.extend(delivery.steps(config, decided.single, gpu_bytes))
    return tuple(steps)


def _model_step(config: RunConfig) -> ModelStep:
    weights = config.model.init == "pretrained" and not set(config.stages) <= {"answer", "data"}
    teacher = config.objective.teacher if config.objective.kind == "distill" and "train" in config.stages else None
    return ModelStep(
        model=config.model,
        cache_dir=config.env.cache_dir,
        weights=weights,
        teacher=teacher,
        sha256=config.lock.model_sha256,
        teacher_sha256=config.lock.teacher_sha256,
    )


def _train_step(config: RunConfig, decided: _Decisions, facts: Facts) -> TrainStep:
    assert config.name is not None
    per_micro = decided.micro_batch_size * decided.train.world_size
    return TrainStep(
        model=config.model,
        objective=config.objective,
        method=config.method,
        train=config.train,
        eval=config.eval,
        track=config.track,
        name=config.name,
        placement=decided.train,
        micro_batch_size=decided.micro_batch_size,
        accumulation_steps=max(config.train.global_batch_size // per_micro, 1),
        activation_checkpointing=decided.activation_checkpointing,
        compile=decided.compile,
        max_shard_size_bytes=size_bytes(config.export.max_shard_size),
        seed=config.seed,
        flops_per_token=None if decided.estimate is None else decided.estimate.model_flops_per_token,
        device_flops=decided.device_flops,
        deepspeed=_deepspeed(config, facts, decided.train),
    )


def _deepspeed(config: RunConfig, facts: Facts, placement: Placement) -> dict[str, Any]:
    return deepspeed.deepspeed_config(placement, max_grad_norm=config.train.max_grad_norm, own=facts.deepspeed)


def _eval_step(config: RunConfig, decided: _Decisions) -> EvalStep:
    return EvalStep(
        model=config.model,
        eval=config.eval,
        adapter=delivery.adapter(config),
        tuned="merged" if delivery.trains_weights(config) else None,
        chat=delivery.is_chat(config),
        placement=decided.single,
        seed=config.seed,
        quantisation=delivery.base_quantisation(config),
    )


def _warnings(config: RunConfig, decided: _Decisions, volume: Volume | None) -> tuple[str, ...]:
    warnings: list[str] = []
    found = decided.estimate
    if found is not None and found.fits is False and found.device_bytes is not None:
        needed, there = found.memory.total_bytes / 1e9, found.device_bytes / 1e9
        warnings.append(f"about {needed:.1f} GB are needed on each device, which has {there:.1f} GB")
    if volume is not None and volume.optimiser_steps is not None and volume.optimiser_steps < _FEW_STEPS:
        steps = f"{volume.optimiser_steps} optimiser step{'' if volume.optimiser_steps == 1 else 's'}"
        warnings.append(f"only about {steps}: raise train.epochs or lower train.global_batch_size")
    if config.objective.kind == "distill" and found is not None:
        warnings.append("the memory estimate leaves out the teacher, whose weights are held beside the model's")
    warnings += answers.warnings(config)
    warnings += [f"verify.bounds.{form} has no effect: it is not exported" for form in delivery.unused_bounds(config)]
    if config.model.trust_remote_code:
        warnings.append("model.trust_remote_code=true lets Python code of the model run")
    if volume is not None and not (holds_out(config.data)):
        warnings.append("no rows are held out: the loss before and after is measured on training rows")
    return tuple(warnings)
