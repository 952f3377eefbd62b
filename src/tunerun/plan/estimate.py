"""What a training run will take: micro-batch, memory, operations, time and disk. Arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tunerun.config.schema import ADAPTER_METHODS, ExportConfig, GgufType, GptqConfig
from tunerun.plan.devices import Device
from tunerun.plan.memory import Memory, Work, layers_with_gradients, memory, trainable_parameters
from tunerun.plan.shape import Sizes

# Share of the data sheet's operations that training reaches: LoRA and full runs on A100 and H100 reported for torch
# (LLaMA-Factory 0.20-0.34, NeMo 0.41-0.43, torchtitan 0.33-0.39); on CPUs, the share of a large matrix product's.
GPU_UTILISATION = (0.2, 0.45)
CPU_UTILISATION = (0.3, 0.9)
# What may be planned with: the rest is for the allocator's gaps.
USABLE_FRACTION = 0.92
# NF4 with a scale of 8 bits for 64 weights; the other weights stay in bf16.
_BNB4_BITS = 4.13
# More tokens at once do not compute faster.
_MICRO_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}
# Bits for each weight of whole files, measured on Llama-3.1-8B (llama.cpp: tools/quantize/README.md); q4_0 to q5_1:
# bits of the block format, with q6_k for the head, which llama.cpp keeps at that.
GGUF_BITS: dict[GgufType, float] = {
    "f32": 32.0,
    "f16": 16.0005,
    "bf16": 16.0005,
    "q8_0": 8.5008,
    "q6_k": 6.5633,
    "q5_k_m": 5.7036,
    "q5_k_s": 5.5704,
    "q5_0": 5.57,
    "q5_1": 6.03,
    "q4_k_m": 4.8944,
    "q4_k_s": 4.6672,
    "q4_0": 4.64,
    "q4_1": 5.10,
    "iq4_nl": 4.6818,
    "iq4_xs": 4.4597,
    "q3_k_l": 4.2979,
    "q3_k_m": 3.9960,
    "q3_k_s": 3.6429,
    "iq3_m": 3.7628,
    "iq3_s": 3.6606,
    "q2_k": 3.1593,
    "iq3_xs": 3.4977,
    "iq3_xxs": 3.2548,
    "q2_k_s": 2.9697,
    "iq2_m": 2.9294,
    "iq2_s": 2.7403,
    "iq2_xs": 2.5882,
    "iq2_xxs": 2.3824,
    "iq1_m": 2.1460,
    "iq1_s": 2.0042,
    # Bits of the block format, with q4_k for the embedding and q6_k for the head.
    "tq2_0": 2.4,
    "tq1_0": 2.05,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Disk:
    """Space a run takes on disk."""

    download_bytes: int
    """The base model in bf16, when it comes from a hub."""
    checkpoints_bytes: int
    """All checkpoints kept."""
    adapter_bytes: int
    merged_bytes: int
    gguf_bytes: int
    bnb4_bytes: int = 0
    gptq_bytes: int = 0
    awq_bytes: int = 0
    fp8_bytes: int = 0

    @property
    def run_bytes(self) -> int:
        """What the run directory grows to."""
        folders = self.merged_bytes + self.bnb4_bytes + self.gptq_bytes + self.awq_bytes + self.fp8_bytes
        return self.checkpoints_bytes + self.adapter_bytes + self.gguf_bytes + folders


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a run will take."""

    parameters: int
    """All weights of the base model."""
    trainable_parameters: int
    memory: Memory
    device_bytes: int | None
    """Memory of one device; None when the device is unknown."""
    fits: bool | None
    """Whether `memory` stays within the usable part of the device."""
    micro_batch_size: int
    accumulation_steps: int
    activation_checkpointing: bool
    flops_per_token: float
    model_flops_per_token: float
    """Without what is computed twice to save memory."""
    step_tokens: int
    """Tokens in an optimiser step over all processes, at most."""
    step_seconds_low: float | None
    """At the upper end of the assumed utilisation; None when the device's speed is unknown."""
    step_seconds_high: float | None
    """At the lower end of the assumed utilisation."""
    disk: Disk


def flops_per_token(size: Sizes, work: Work, *, activation_checkpointing: bool) -> float:
    """Counts the operations of one trained token: forward, backward and what is computed besides.

    A weight costs 2 operations forward, 2 for the gradient of its input and, when it is trained, 2 for its own.
    Causal attention costs 2 x row x width x layers forward and twice that backward. Adapters are left out (< 1 %).
    """
    forward = 2.0 * size.matmul_parameters
    attention = 2.0 * work.row_tokens * size.query_width * size.layers
    share = layers_with_gradients(size, work) / size.layers
    backward = forward if work.method in ADAPTER_METHODS else 2 * forward * share
    total = forward + backward + (1 + 2 * share) * attention
    if activation_checkpointing:
        total += share * (2.0 * size.layers * size.layer_linear_parameters + attention)
    if work.has_reference:
        total += forward + attention
    return total


def choose(
    size: Sizes,
    work: Work,
    *,
    device_bytes: int | None,
    micro_batch_size: int | None,
    activation_checkpointing: bool | None,
) -> tuple[int, bool]:
    """Chooses what the user left open: the largest micro-batch that fits, recomputing activations only when none does.

    Args:
        size: Of the model.
        work: What is trained and how it is spread.
        device_bytes: Memory of one device, or None when unknown.
        micro_batch_size: As the user set it, or None.
        activation_checkpointing: As the user set it, or None.

    Returns:
        The micro-batch, which divides the samples of a process, and whether to recompute activations. When nothing
        fits, the smallest of both.
    """
    samples = max(1, work.global_batch_size // work.world_size)
    most = max(1, _MICRO_BATCH_TOKENS[work.device] // (work.row_tokens * work.rows_per_sample))
    divisors = [count for count in range(min(samples, most), 0, -1) if samples % count == 0]
    sizes = divisors if micro_batch_size is None else [micro_batch_size]
    modes = [False, True] if activation_checkpointing is None else [activation_checkpointing]
    for recompute in modes:
        for count in sizes:
            needed = memory(size, work, micro_batch_size=count, activation_checkpointing=recompute)
            if device_bytes is None or needed.total_bytes <= device_bytes * USABLE_FRACTION:
                return count, recompute
    return sizes[-1], modes[-1]


def step_seconds(flops: float, device: Device, world_size: int) -> tuple[float, float] | None:
    """Returns the shortest and the longest time for some operations, by the assumed utilisation.

    Args:
        flops: Operations over all processes.
        device: What one process computes on.
        world_size: Number of processes.
    """
    if device.flops is None:
        return None
    low, high = CPU_UTILISATION if device.name == "cpu" else GPU_UTILISATION
    ideal = flops / (device.flops * world_size)
    return ideal / high, ideal / low


def gguf_bytes(parameters: int, kind: GgufType) -> int:
    """Returns the size of a GGUF file."""
    return int(parameters * GGUF_BITS[kind] / 8)


def disk(size: Sizes, work: Work, *, checkpoints: int, merged: bool, export: ExportConfig) -> Disk:
    """Adds up the space a run takes.

    Args:
        size: Of the model.
        work: What is trained.
        checkpoints: Checkpoints kept: weights in fp32, the optimiser's state, and with an average of the weights those
            that move.
        merged: Whether merged/ is written, in bf16.
        export: What is exported.
    """
    trainable = trainable_parameters(size, work)
    # PiSSA is written as a LoRA of twice the rank; freezing keeps whole models.
    written = 2 * trainable if work.method == "pissa" else size.parameters if work.method == "freeze" else trainable
    return Disk(
        download_bytes=2 * size.parameters,
        checkpoints_bytes=int(4 * written + work.state_bytes * trainable) * checkpoints,
        adapter_bytes=4 * written if work.method in ADAPTER_METHODS else 0,
        merged_bytes=2 * size.parameters if merged else 0,
        gguf_bytes=sum(gguf_bytes(size.parameters, kind) for kind in export.gguf.types),
        bnb4_bytes=folder_bytes(size, export, "bnb4") if export.bnb4.write else 0,
        gptq_bytes=folder_bytes(size, export, "gptq") if export.gptq.write else 0,
        awq_bytes=folder_bytes(size, export, "awq") if export.awq.write else 0,
        fp8_bytes=folder_bytes(size, export, "fp8") if export.fp8.write else 0,
    )


def folder_bytes(size: Sizes, export: ExportConfig, name: Literal["bnb4", "gptq", "awq", "fp8"]) -> int:
    """Returns the size of an exported folder."""
    bits = {"bnb4": _BNB4_BITS, "gptq": _gptq_bits(export.gptq), "awq": 4 + 16 / export.awq.group_size, "fp8": 8.0}
    return _packed_bytes(size, bits[name])


def _packed_bytes(size: Sizes, bits: float) -> int:
    """Returns the size of a folder whose layers hold so many bits a weight, and the rest 16."""
    linear = size.layers * size.layer_linear_parameters
    return int(linear * bits / 8 + 2 * (size.parameters - linear))


def _gptq_bits(gptq: GptqConfig) -> float:
    """Returns the bits of a weight: its own, and its share of its group's fp16 scale and zero point."""
    return gptq.bits + (16 + gptq.bits) / gptq.group_size


def estimate(
    size: Sizes,
    work: Work,
    device: Device | None,
    *,
    disk: Disk,
    micro_batch_size: int | None = None,
    activation_checkpointing: bool | None = None,
) -> Estimate:
    """Puts everything together.

    Args:
        size: Of the model.
        work: What is trained and how it is spread.
        device: What one process computes on, or None when it is unknown.
        disk: Made by `disk`.
        micro_batch_size: As the user set it, or None to choose.
        activation_checkpointing: As the user set it, or None to choose.

    Raises:
        UserError: The method or one of its modules cannot be counted.
    """
    trainable = trainable_parameters(size, work)
    device_bytes = None if device is None else device.memory_bytes
    samples, recompute = choose(
        size,
        work,
        device_bytes=device_bytes,
        micro_batch_size=micro_batch_size,
        activation_checkpointing=activation_checkpointing,
    )
    needed = memory(size, work, micro_batch_size=samples, activation_checkpointing=recompute)
    flops = flops_per_token(size, work, activation_checkpointing=recompute)
    step_tokens = work.global_batch_size * work.rows_per_sample * work.row_tokens
    seconds = None if device is None else step_seconds(flops * step_tokens, device, work.world_size)
    return Estimate(
        parameters=size.parameters,
        trainable_parameters=trainable,
        memory=needed,
        device_bytes=device_bytes,
        fits=None if device_bytes is None else needed.total_bytes <= device_bytes * USABLE_FRACTION,
        micro_batch_size=samples,
        accumulation_steps=max(1, work.global_batch_size // (work.world_size * samples)),
        activation_checkpointing=recompute,
        flops_per_token=flops,
        model_flops_per_token=flops_per_token(size, work, activation_checkpointing=False),
        step_tokens=step_tokens,
        step_seconds_low=None if seconds is None else seconds[0],
        step_seconds_high=None if seconds is None else seconds[1],
        disk=disk,
    )
