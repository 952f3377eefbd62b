"""What verification will take: passes through models, files read, servers started. Arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass

from tunerun.config.schema import ExportConfig
from tunerun.plan.devices import Device
from tunerun.plan.estimate import folder_bytes, gguf_bytes, step_seconds
from tunerun.plan.shape import Sizes
from tunerun.plan.steps import (
    VERIFY_ANSWER_TOKENS,
    VERIFY_PROMPTS,
    VERIFY_SERVED_ANSWERS,
    VERIFY_SERVED_TOKENS,
    VERIFY_TOKENS,
    VerifyStep,
)
from tunerun.servers import GGUF_ENGINES

# Of a disk in a laptop and in a server; what was just written is often read from memory.
_READ_BYTES_A_SECOND = (2e9, 2e8)
# Start-up, a server and the texts of a file or folder. Measured on two cores: the quickstart's gates without a server
# took 9 to 16 s in all, `serving:llamacpp` 1.4 to 6.8 s, `serving:transformers` 7.4 s.
_STAGE_SECONDS, _SERVER_SECONDS, _FILE_SECONDS = (4.0, 8.0), (1.5, 10.0), (0.5, 2.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What the verify stage will take, at most."""

    passes: int
    """How often a model is run over the texts."""
    continued: tuple[str, ...]
    """GGUF types whose answers are compared token by token."""
    servers: int
    """Servers started and asked."""
    flops: float | None
    """Operations, in float32; None when the model's shape is unknown, as in what follows."""
    read_bytes: int | None
    """Files read, to load models and to see whether they are whole."""
    seconds_low: float | None
    """When disk and processor are fast; None on a GPU, whose speed in float32 is not known."""
    seconds_high: float | None
    """When they are slow."""


def verification(step: VerifyStep, size: Sizes | None, export: ExportConfig, cpu: Device | None) -> Verification:
    """Counts what a verify step does. Adapters are left out (< 1 %).

    Args:
        step: The step.
        size: Of the model, when its shape is known.
        export: What is exported.
        cpu: What models are run on; None for a GPU.
    """
    servers = len(step.engines) + (1 if step.chat and step.gguf_types else 0)
    flops = None if size is None else _flops(step, size)
    read = None if size is None else _read_bytes(step, size, export)
    computing = None if flops is None or cpu is None else step_seconds(flops, cpu, 1)
    low: float | None = None
    high: float | None = None
    if computing is not None and read is not None:
        files = int(step.merged) + len(step.folders) + len(step.gguf_types) + int(step.gguf_adapter)
        low, high = (
            computing[slow] + read / _READ_BYTES_A_SECOND[slow] + _STAGE_SECONDS[slow]
            + servers * _SERVER_SECONDS[slow] + files * _FILE_SECONDS[slow]
            for slow in (0, 1)
        )  # fmt: skip
    return Verification(
        passes=_passes(step),
        continued=step.continued,
        servers=servers,
        flops=flops,
        read_bytes=read,
        seconds_low=low,
        seconds_high=high,
    )


def _passes(step: VerifyStep) -> int:
    # The adapter on its base, the base alone, both merged and rounded in memory, and merged/.
    merge = 4 if step.merged and step.adapter is not None else 0
    exported = len(step.gguf_types) + len(step.folders)
    # What they were made from, and each of them.
    return merge + (1 + exported if exported else 0)


def _flops(step: VerifyStep, size: Sizes) -> float:
    token = 2.0 * size.matmul_parameters + 2.0 * VERIFY_TOKENS * size.query_width * size.layers
    compared = step.rows * VERIFY_TOKENS * _passes(step)
    # The model writes answers and reads them again for what it was sure of; the file reads them.
    continued = 3 * len(step.continued) * VERIFY_PROMPTS * (VERIFY_TOKENS + VERIFY_ANSWER_TOKENS)
    served = len(step.engines) * VERIFY_SERVED_ANSWERS * (VERIFY_TOKENS + VERIFY_SERVED_TOKENS)
    return token * (compared + continued + served)


def _read_bytes(step: VerifyStep, size: Sizes, export: ExportConfig) -> int:
    whole = 2 * size.parameters
    files = {kind: gguf_bytes(size.parameters, kind) for kind in step.gguf_types}
    packed = sum(folder_bytes(size, export, name) for name in step.folders)
    # The base and merged/ for the merge; what the exported ones were made from, and again under each packed folder.
    loads = (2 if step.merged and step.adapter is not None else 0) + (1 if files or step.folders else 0)
    loads += sum(name != "bnb4" for name in step.folders)
    read = loads * whole + packed + sum(files.values()) + sum(files[kind] for kind in step.continued)
    for engine in step.engines:
        read += next(iter(files.values())) if engine in GGUF_ENGINES else whole
    if step.level == "full":
        # Values of what is not quantised, and every file's hash.
        read += (whole if step.merged else 0) + packed + sum(files[kind] for kind in step.continued)
        read += (whole if step.merged else 0) + packed + sum(files.values())
    return read
