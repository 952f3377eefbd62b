"""Builds the plan of a run from its config and the facts about machine, model and data. Pure: reads nothing."""

from __future__ import annotations

from dataclasses import dataclass

from tunerun.config.checks import size_bytes
from tunerun.config.schema import ADAPTER_METHODS, RunConfig
from tunerun.machine import Machine
from tunerun.plan import estimate
from tunerun.plan.dataset import DataSize
from tunerun.plan.devices import Device
from tunerun.plan.estimate import Estimate
from tunerun.plan.plan import Plan
from tunerun.plan.steps import (
    DataStep,
    EvalStep,
    ExportStep,
    MergeStep,
    ModelStep,
    Placement,
    ServeStep,
    Step,
    TrainStep,
    VerifyStep,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the plan depends on besides the config."""

    machine: Machine
    device: Device | None
    """The GPU planned for; None for the CPU."""
    data: DataSize | None
    """Size of the data, when it can be told without a download."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Decisions:
    """What the plan decides for the user."""

    train: Placement
    single: Placement
    micro_batch_size: int
    activation_checkpointing: bool
    estimate: Estimate | None
    notes: tuple[str, ...]


def build(config: RunConfig, facts: Facts, notes: tuple[str, ...] = ()) -> Plan:
    """Builds the plan.

    Args:
        config: Checked, with `name` and `run_dir` filled in and local paths absolute.
        facts: About machine, device and data.
        notes: What was already decided, shown with the plan's own notes.
    """
    assert config.name is not None and config.run_dir is not None and config.model.path is not None
    decided = _decide(config, facts)
    return Plan(
        name=config.name,
        run_dir=config.run_dir,
        steps=_steps(config, decided),
        estimate=decided.estimate,
        notes=notes + decided.notes,
        warnings=_warnings(config, facts, decided),
    )


def trains_adapter(config: RunConfig) -> bool:
    """Says whether training makes an adapter."""
    return "train" in config.stages and config.method.kind in ADAPTER_METHODS


def trains_weights(config: RunConfig) -> bool:
    """Says whether training makes a whole model."""
    return "train" in config.stages and config.method.kind not in ADAPTER_METHODS


def _decide(config: RunConfig, facts: Facts) -> _Decisions:
    train, single = _placements(config, facts)
    notes: list[str] = []
    if train.device == "cpu":
        notes.append(f"CPU: {train.precision}, {train.threads} threads for each of {train.processes} processes")
    if "merge" in config.stages and trains_weights(config):
        notes.append(f"method {config.method.kind} trains whole weights: nothing to merge, train writes merged/")
    query = estimate.Query(config=config, placement=train, device=facts.device, data=facts.data)
    micro, checkpointing, why = estimate.choose(query, facts.machine)
    notes.extend(why)
    return _Decisions(
        train=train,
        single=single,
        micro_batch_size=micro,
        activation_checkpointing=checkpointing,
        estimate=estimate.estimate(query, micro, checkpointing=checkpointing),
        notes=tuple(notes),
    )


def _placements(config: RunConfig, facts: Facts) -> tuple[Placement, Placement]:
    """Returns where training runs, and where the single-process stages do."""
    hardware = config.hardware
    on_gpu = facts.device is not None
    if hardware.precision == "auto":
        precision = "bf16" if facts.device is not None and facts.device.bf16 else "fp32"
    else:
        precision = hardware.precision
    processes = hardware.processes
    if processes is None:
        processes = 1 if hardware.strategy == "single" else max(len(facts.machine.gpus), 1)
    threads = hardware.threads or max(facts.machine.cores // processes, 1)
    train = Placement(
        device="cuda" if on_gpu else "cpu",
        precision="bf16" if precision == "bf16" else "fp32",
        threads=threads,
        strategy=hardware.strategy,
        processes=processes,
        nodes=config.cluster.nodes,
        offload=hardware.offload,
    )
    single = Placement(
        device=train.device,
        precision=train.precision,
        threads=hardware.threads or facts.machine.cores,
    )
    return train, single


def _steps(config: RunConfig, decided: _Decisions) -> tuple[Step, ...]:
    steps: list[Step] = [_model_step(config)]
    if "data" in config.stages:
        steps.append(
            DataStep(
                data=config.data,
                objective=config.objective,
                chat_template=config.model.chat_template,
                seed=config.seed,
            )
        )
    if "train" in config.stages:
        steps.append(_train_step(config, decided))
    if "eval" in config.stages:
        steps.append(_eval_step(config, decided))
    steps.extend(_delivery(config, decided))
    return tuple(steps)


def _model_step(config: RunConfig) -> ModelStep:
    weights = config.model.init == "pretrained" and set(config.stages) != {"data"}
    return ModelStep(model=config.model, cache_dir=config.env.cache_dir, weights=weights)


def _train_step(config: RunConfig, decided: _Decisions) -> TrainStep:
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
        max_shard_size_bytes=size_bytes(config.export.max_shard_size),
        seed=config.seed,
    )


def _eval_step(config: RunConfig, decided: _Decisions) -> EvalStep:
    return EvalStep(
        model=config.model,
        eval=config.eval,
        adapter=_adapter(config),
        tuned="merged" if trains_weights(config) else None,
        chat=_chat(config),
        placement=decided.single,
        seed=config.seed,
    )


def _delivery(config: RunConfig, decided: _Decisions) -> list[Step]:
    """Returns the steps after training and evaluation."""
    assert config.name is not None
    steps: list[Step] = []
    adapter = _adapter(config)
    merges = "merge" in config.stages and adapter is not None
    merged = merges or trains_weights(config)
    if merges:
        assert adapter is not None
        shard = size_bytes(config.export.max_shard_size)
        steps.append(MergeStep(adapter=adapter, chat_template=config.model.chat_template, max_shard_size_bytes=shard))
    if "export" in config.stages:
        template = None if merged else config.model.chat_template
        steps.append(ExportStep(name=config.name, merged=merged, gguf=config.export.gguf, chat_template=template))
    if "verify" in config.stages and config.verify.level != "off":
        steps.append(
            VerifyStep(
                level=config.verify.level,
                adapter=adapter if merges else None,
                merged=merged,
                gguf_types=config.export.gguf.types if "export" in config.stages else (),
                chat=_chat(config),
                prompts=config.eval.prompts,
                placement=decided.single,
                seed=config.seed,
            )
        )
    if "serve" in config.stages:
        steps.append(ServeStep(serve=config.serve, placement=decided.single))
    return steps


def _adapter(config: RunConfig) -> str | None:
    if trains_adapter(config):
        return "adapter"
    return None if "train" in config.stages else config.model.adapter


def _chat(config: RunConfig) -> bool:
    return config.objective.kind != "pretrain"


def _warnings(config: RunConfig, facts: Facts, decided: _Decisions) -> tuple[str, ...]:
    warnings: list[str] = []
    found = decided.estimate
    if found is not None and facts.device is not None and found.memory_bytes > facts.device.memory_bytes:
        warnings.append(
            f"about {found.memory_bytes / 1e9:.1f} GB are needed on each device, and "
            f"{facts.device.name} has {facts.device.memory_bytes / 1e9:.1f} GB"
        )
    if config.model.trust_remote_code:
        warnings.append("model.trust_remote_code=true lets Python code of the model run")
    if "train" in config.stages and not (config.data.eval_fraction or config.data.eval_path):
        warnings.append("no rows are held out: the loss before and after is measured on training rows")
    return tuple(warnings)
