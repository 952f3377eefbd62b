"""The plan as text for a terminal, at most 100 columns wide."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from tunerun import artifacts, columns
from tunerun.columns import MAX_COLUMNS
from tunerun.config import typed
from tunerun.config.schema import AnswerConfig, GgufType
from tunerun.plan import accelerate
from tunerun.plan.estimate import Estimate, gguf_bytes
from tunerun.plan.plan import Plan, Volume
from tunerun.plan.steps import (
    VERIFY_ANSWER_TOKENS,
    VERIFY_PROMPTS,
    VERIFY_TOKENS,
    AnswerStep,
    ExportStep,
    PublishStep,
    TrainStep,
    VerifyStep,
)
from tunerun.plan.verification import Verification

_LABEL_WIDTH = 14


def render(
    plan: Plan, *, commands: Mapping[str, Sequence[str]], files: Mapping[str, str], obstacles: Sequence[str]
) -> str:
    """Lays a plan out.

    Args:
        plan: What to show.
        commands: Command line by stage.
        files: Text of what is handed to a cluster, by file name.
        obstacles: What keeps this machine from running the plan.
    """
    lines = [*columns.fill(f"plan: {plan.name} -> {plan.run_dir}", MAX_COLUMNS, rest="  "), ""]
    lines += _row("stages", " -> ".join(step.stage for step in plan.steps))
    lines += [line for step in plan.steps if isinstance(step, AnswerStep) for line in _teacher(step.answer)]
    train = plan.train
    if train is not None:
        lines += _training(train, plan.volume)
    if plan.estimate is not None:
        exported = next((step.gguf.types for step in plan.steps if isinstance(step, ExportStep)), ())
        lines += _estimate(plan.estimate, exported, on_cpu=train is not None and train.placement.device == "cpu")
    for step in plan.steps:
        if isinstance(step, VerifyStep) and plan.verification is not None:
            lines += _verifying(step, plan.verification)
        if isinstance(step, PublishStep):
            lines += _publishing(step, plan.estimate)
    lines += ["", "commands", *_commands(commands)]
    for name, config in ({} if train is None else accelerate.launch_files(train)).items():
        lines += ["", f"{artifacts.LAUNCH}/{name}"]
        lines += columns.fill(_settings(config), MAX_COLUMNS, first="  ", rest="  ")
    for name, text in files.items():
        # Not folded: it can be copied from here.
        lines += ["", name, *(f"  {line}".rstrip() for line in text.splitlines())]
    for title, texts in (("notes", plan.notes), ("warnings", plan.warnings), ("cannot run here", obstacles)):
        if texts:
            lines += [
                "",
                title,
                *(line for text in texts for line in columns.fill(text, MAX_COLUMNS, first="  - ", rest="    ")),
            ]
    return "\n".join(lines)


def quantity(value: float) -> str:
    """Writes a count with three digits and a unit: `1.54 B`."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def gigabytes(value: float) -> str:
    """Writes a size: `3.1 GB`, or `12 MB` below a tenth of a gigabyte."""
    return f"{value / 1e9:.1f} GB" if value >= 1e8 else f"{value / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """Writes a time with its two largest units: `2 h 5 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 48 * 60 else f"{minutes / 1440:.1f} days"


def _teacher(answer: AnswerConfig) -> list[str]:
    each = "" if answer.samples == 1 else f", {answer.samples} answers each"
    first = "" if answer.max_prompts is None else f"the first {answer.max_prompts:,} of "
    return _row("teacher", f"{answer.model} at {answer.url} answers {first}{', '.join(answer.prompts)}{each}")


def _training(train: TrainStep, volume: Volume | None) -> list[str]:
    placement = train.placement
    where = "GPU" if placement.device == "cuda" else f"CPU, {placement.threads} threads each"
    spread = f"{placement.processes} x {placement.nodes} nodes" if placement.nodes > 1 else str(placement.processes)
    lines = _row("train", f"{train.objective.kind}, {train.method.kind}, {placement.precision}")
    lines += _row("processes", f"{spread} ({placement.strategy}), {where}")
    batch = train.micro_batch_size * train.accumulation_steps * placement.world_size
    ranks = f"{placement.world_size} process{'es' * (placement.world_size > 1)}"
    parts = f"{train.micro_batch_size} x {train.accumulation_steps} accumulated x {ranks}"
    lines += _row("batch", f"{batch} = {parts}")
    if volume is not None and volume.optimiser_steps is not None:
        about = "" if volume.rows is None else f", about {quantity(volume.rows)} rows"
        tokens = "" if volume.tokens is None else f", about {quantity(volume.tokens)} tokens"
        lines += _row("steps", f"{volume.optimiser_steps}{about}{tokens}")
    elif volume is not None:
        lines += _row("steps", "known when the data has been read")
    return lines


def _estimate(found: Estimate, exported: Sequence[GgufType], *, on_cpu: bool) -> list[str]:
    share = 100 * found.trainable_parameters / found.parameters
    lines = _row(
        "parameters",
        f"{quantity(found.parameters)} in all, {quantity(found.trainable_parameters)} trainable ({share:.2g} %)",
    )
    memory = found.memory
    parts = [
        ("weights", memory.weights_bytes),
        ("gradients", memory.gradients_bytes),
        ("optimiser", memory.optimiser_bytes),
        ("activations", memory.activations_bytes),
        ("logits", memory.logits_bytes),
        ("libraries", memory.runtime_bytes),
    ]
    device = "" if found.device_bytes is None else f" of {gigabytes(found.device_bytes)}"
    place = "this machine" if on_cpu else "each GPU"
    lines += _row("memory", f"about {gigabytes(memory.total_bytes)}{device} on {place}: "
                  + ", ".join(f"{name} {gigabytes(size)}" for name, size in parts))  # fmt: skip
    if memory.host_bytes:
        lines += _row("", f"and {gigabytes(memory.host_bytes)} of host memory for what is offloaded")
    if found.step_seconds_low is not None and found.step_seconds_high is not None:
        lines += _row("time", f"{_seconds(found.step_seconds_low)} to {_seconds(found.step_seconds_high)} a step of at "
                      f"most {quantity(found.step_tokens)} tokens, once warm")  # fmt: skip
    disk = found.disk
    files = [(f"gguf {kind}", gguf_bytes(found.parameters, kind)) for kind in exported]
    sizes = [("adapter", disk.adapter_bytes), ("merged", disk.merged_bytes), *files,
             ("bnb4", disk.bnb4_bytes), ("gptq", disk.gptq_bytes),
             ("awq", disk.awq_bytes), ("fp8", disk.fp8_bytes), ("checkpoints", disk.checkpoints_bytes)]  # fmt: skip
    detail = ", ".join(f"{name} {gigabytes(size)}" for name, size in sizes if size)
    return lines + _row("disk", f"{gigabytes(disk.run_bytes)}: {detail}")


def _verifying(step: VerifyStep, found: Verification) -> list[str]:
    parts = [f"{step.rows} texts of {VERIFY_TOKENS} tokens {found.passes} times through a model in float32"]
    if found.continued:
        parts.append(f"{VERIFY_PROMPTS} answers of {VERIFY_ANSWER_TOKENS} tokens ({', '.join(found.continued)})")
    if step.engines:
        parts.append(f"served by {', '.join(step.engines)}")
    lines = _row("verify", f"{step.level}: at most {'; '.join(parts)}")
    if found.flops is not None and found.read_bytes is not None:
        text = f"{gigabytes(found.read_bytes)} of files read, about {quantity(found.flops)} operations"
        if found.seconds_low is not None and found.seconds_high is not None:
            text += f": {_seconds(found.seconds_low)} to {_seconds(found.seconds_high)}"
        lines += _row("", text)
    return lines


def _publishing(step: PublishStep, found: Estimate | None) -> list[str]:
    publish, lines = step.publish, []
    if publish.repo is not None:
        sizes: dict[str, int] = {}
        if found is not None:
            disk = found.disk
            sizes = {"merged": disk.merged_bytes, "adapter": disk.adapter_bytes, "gguf": disk.gguf_bytes}
            sizes["bnb4"] = disk.bnb4_bytes
        parts = [f"{kind} about {gigabytes(sizes[kind])}" if sizes.get(kind) else kind for kind in step.artifacts]
        what = ", ".join(parts) or "what the run directory has"
        where = f"{publish.hub}:{publish.repo}" + (f"@{publish.revision}" if publish.revision else "")
        sight = "private" if publish.private else "public"
        dry = "; dry run, nothing is sent" if publish.dry_run else ""
        lines += _row("publish", f"{where} ({sight} if it is made): model card, {what}{dry}")
    if publish.ollama is not None:
        lines += _row("publish" if not lines else "", f"Ollama on this machine, as {publish.ollama}")
    return lines


def _commands(commands: Mapping[str, Sequence[str]]) -> list[str]:
    """Shows command lines; those that differ in the stage's name only, which comes last, are one."""
    stages: dict[str, list[str]] = {}
    for stage, argv in commands.items():
        stages.setdefault(shlex.join(argv[:-1]), []).append(stage)
    lines = []
    for command, names in stages.items():
        text = command + (f" {names[0]}" if len(names) == 1 else f" STAGE   (STAGE: {', '.join(names)})")
        lines += columns.fill(text, MAX_COLUMNS, first="  ", rest=" " * 6)
    return lines


def _settings(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {typed.shown(value)}" for key, value in typed.flatten(config).items())


def _seconds(value: float) -> str:
    return f"{value:.2g} s" if value < 90 else duration(value)


def _row(label: str, text: str) -> list[str]:
    return columns.fill(text, MAX_COLUMNS, first=f"{label:<{_LABEL_WIDTH}}", rest=" " * _LABEL_WIDTH)
