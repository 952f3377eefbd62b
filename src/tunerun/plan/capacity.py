"""Writes the table of what fits where into README.md and README.zh.md, from the plans themselves.

`python -m tunerun.plan.capacity` writes both; a test compares them with what stands in the repository.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from tunerun import markdown, paths
from tunerun.config import typed
from tunerun.config.schema import (
    ClusterConfig,
    DataConfig,
    HardwareConfig,
    MethodConfig,
    MethodKind,
    ModelConfig,
    RunConfig,
    TrainConfig,
)
from tunerun.machine import Machine
from tunerun.plan import build
from tunerun.plan.estimate import Estimate
from tunerun.strategies import Strategy

BEGIN, END = "<!-- capacity: written by `make docs` -->", "<!-- capacity: end -->"

_MODELS = ("0.5b", "1.5b", "3b", "7b", "14b", "32b", "72b")
_METHODS: tuple[MethodKind, ...] = ("lora", "qlora", "full")
_GPUS = {"24 GB": "rtx4090", "80 GB": "h100-80g", "141 GB": "h200"}
_COUNTS = (1, 8, 16, 64)
_GPUS_PER_NODE = 8
_ROW_TOKENS = 2048
# Every count of GPUs divides it.
_BATCH_ROWS = 64
# Nothing is read of it but its cores: the plan is for the GPU that is named.
_NODE = Machine(cores=64, memory_bytes=1 << 40, gpus=(), python="")


@dataclass(frozen=True, slots=True)
class _Way:
    """A way to spread a training; the first that fits is the fastest."""

    letter: str
    strategy: Strategy
    offload: bool = False


_ALONE = (_Way("s", "single"), _Way("o", "zero3", offload=True))
_TOGETHER = (_Way("d", "ddp"), _Way("2", "zero2"), _Way("f", "fsdp2"), _Way("o", "zero3", offload=True))
# What shares out parameters cannot cut 4-bit ones.
_WHOLE = ("single", "ddp", "zero2")


def table() -> str:
    """Returns the table in Markdown."""
    heads = [f"{size}: {count}" if count == 1 else str(count) for size in _GPUS for count in _COUNTS]
    rows = [
        [model.upper(), method, *(_cell(model, method, gpu, count) for gpu in _GPUS.values() for count in _COUNTS)]
        for model in _MODELS
        for method in _METHODS
    ]
    return markdown.table(["Qwen2.5", "method", *heads], rows)


def with_table(text: str) -> str:
    """Returns a text with the table between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert after, "the marks are missing"
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def _cell(model: str, method: MethodKind, gpu: str, count: int) -> str:
    """Says how a training is spread over some GPUs and what each holds; a dash where nothing fits."""
    for way in _ALONE if count == 1 else _TOGETHER:
        if method == "qlora" and way.strategy not in _WHOLE:
            continue
        found = _estimate(model, method, gpu, count, way)
        if found.fits:
            again = "r" if found.activation_checkpointing else ""
            return f"{way.letter}{again} {found.memory.total_bytes / 1e9:.0f}"
    return "–"


def _estimate(model: str, method: MethodKind, gpu: str, count: int, way: _Way) -> Estimate:
    processes = min(count, _GPUS_PER_NODE)
    config = RunConfig(
        name="capacity",
        run_dir="/",
        model=_model(model),
        data=DataConfig(path=("rows.jsonl",), max_length=_ROW_TOKENS),
        method=MethodConfig(kind=method),
        train=TrainConfig(global_batch_size=_BATCH_ROWS, micro_batch_size=1),
        hardware=HardwareConfig(gpu=gpu, strategy=way.strategy, offload=way.offload, processes=processes),
        cluster=ClusterConfig(kind="slurm", nodes=count // processes),
    )
    found = build.build(config, build.Facts(machine=_NODE, data=None)).estimate
    assert found is not None, "the shape is known"
    return found


def _model(name: str) -> ModelConfig:
    data = yaml.safe_load((paths.shipped("conf") / "model" / f"qwen2.5-{name}.yaml").read_text(encoding="utf-8"))
    model, problems = typed.build(ModelConfig, data, "model")
    assert model is not None and not problems
    return model


def files() -> list[Path]:
    """Returns the files that hold the table, in a checkout."""
    return [paths.shipped("conf").parent / name for name in ("README.md", "README.zh.md")]


def main() -> None:
    """Writes the table."""
    for file in files():
        file.write_text(with_table(file.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
