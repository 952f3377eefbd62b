"""A run directory with a tiny model and random rows, and the steps to work on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import random_samples, tiny_qwen2, write_store
from tunerun import artifacts
from tunerun.base_model import BaseModel, write_base
from tunerun.config.schema import EvalConfig, MethodConfig, ModelConfig, ObjectiveConfig, TrackConfig, TrainConfig
from tunerun.plan.placement import Placement
from tunerun.plan.steps import TrainStep
from tunerun.train import gradients, loop
from tunerun.train.job import Job

FULL = MethodConfig(kind="full")
LORA = MethodConfig(rank=4, alpha=8.0, dropout=0.1)


def make_run(
    out: Path, *, rows: int = 20, packed: bool = False, seed: int = 0, base: dict[str, Any] | None = None
) -> Path:
    """Makes model.json and data/ with `rows` samples; packed, four samples share a row; `base` is of its config."""
    folder = out / "base"
    if not folder.is_dir():
        tiny_qwen2(folder, **(base or {}))
    digest = artifacts.sha256(folder / "model.safetensors")
    write_base(out, BaseModel(folder=folder, path="org/tiny", revision=None, sha256=digest))
    samples = random_samples(rows, seed=seed)
    size = 4 if packed else 1
    write_store(out / "data", [samples[start : start + size] for start in range(0, rows, size)], packed=packed)
    return out


def train_step(
    method: MethodConfig = LORA,
    *,
    micro_batch_size: int = 4,
    precision: Any = "fp32",
    threads: int = 1,
    track: TrackConfig | None = None,
    model: ModelConfig | None = None,
    **train: Any,
) -> TrainStep:
    """Returns a step of 2 epochs with a global batch of 8 rows; `train` replaces keys of its section."""
    config = TrainConfig(**{"epochs": 2.0, "global_batch_size": 8, "learning_rate": 1e-2, **train})
    return TrainStep(
        model=model or ModelConfig(path="org/tiny"),
        objective=ObjectiveConfig(),
        method=method,
        train=config,
        eval=EvalConfig(),
        track=track or TrackConfig(),
        name="test",
        placement=Placement(threads=threads, precision=precision),
        micro_batch_size=micro_batch_size,
        accumulation_steps=2,
        activation_checkpointing=False,
        max_shard_size_bytes=10**9,
        seed=1,
    )


class Killed(BaseException):
    """Stands for a process that is gone: nothing after it runs, nothing before it is undone."""


@contextmanager
def before_step(index: int, action: Callable[[], None]) -> Iterator[None]:
    """Does something right before an optimiser step, numbered from 0, within the block."""
    original = loop.optimiser_step

    def step(job: Job, number: int) -> loop.StepResult:
        if number == index:
            action()
        return original(job, number)

    loop.optimiser_step = step
    try:
        yield
    finally:
        loop.optimiser_step = original


def kill_before(index: int) -> Any:
    """Ends the training before a step, within the block."""
    return before_step(index, _kill)


def _kill() -> None:
    raise Killed


def after_accumulate(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any, int, Any], Any]) -> None:
    """Changes what the gradients of a step, numbered from 0, came to."""
    accumulate, global_batch, index = gradients.accumulate, gradients.global_batch, -1

    def numbered(job: Any, number: int) -> Any:
        nonlocal index
        index = number
        return global_batch(job, number)

    monkeypatch.setattr(gradients, "global_batch", numbered)
    monkeypatch.setattr(gradients, "accumulate", lambda job, batch: change(job, index, accumulate(job, batch)))


def break_gradients(monkeypatch: pytest.MonkeyPatch, *broken: int) -> None:
    """Makes the gradients of some steps, numbered from 1, NaN."""

    def spoil(job: Job, index: int, found: Any) -> Any:
        if index + 1 in broken:
            next(iter(job.parameters.values())).grad.fill_(float("nan"))
        return found

    after_accumulate(monkeypatch, spoil)


@contextmanager
def nan_in_step(index: int | None) -> Iterator[None]:
    """Makes the loss of an optimiser step, numbered from 0, NaN within the block; None leaves all as they are."""
    global_batch, weighted, now = gradients.global_batch, gradients._weighted, -1

    def numbered(job: Any, number: int) -> Any:
        nonlocal now
        now = number
        return global_batch(job, number)

    def spoilt(*arguments: Any) -> Any:
        function = weighted(*arguments)

        def spoil(network: Any) -> Any:
            loss, sums = function(network)
            return (loss * float("nan") if now == index else loss), sums

        return spoil

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "global_batch", numbered)
        patch.setattr(gradients, "_weighted", spoilt)
        yield


def metrics(out: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl."""
    return [json.loads(line) for line in (out / artifacts.METRICS).read_text().splitlines()]


def losses(out: Path) -> list[tuple[int, float]]:
    """Returns the steps and losses of metrics.jsonl."""
    return [(line["step"], line["loss"]) for line in metrics(out) if "loss" in line]
