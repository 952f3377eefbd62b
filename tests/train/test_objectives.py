"""What holds for every objective: gradients do not depend on the split, resuming is exact, the loss falls."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.tiny import random_samples
from tests.train.objective_runs import (
    OBJECTIVES,
    at_a_time,
    make_objective_run,
    objective_job,
    objective_step,
    write_rows,
)
from tests.train.runs import FULL, Killed, kill_before
from tunerun import artifacts
from tunerun.config.schema import MethodConfig
from tunerun.train import gradients, held_out
from tunerun.train.job import Job
from tunerun.train.stage import run

LORA = MethodConfig(rank=4, alpha=8.0)
NAMES = list(OBJECTIVES)


def _gradients(job: Job, index: int) -> torch.Tensor:
    job.network.train()
    gradients.accumulate(job, gradients.global_batch(job, index))
    found = torch.cat([value.grad.flatten() for value in job.parameters.values()])
    job.network.zero_grad()
    return found


def _relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    assert float(wanted.norm()) > 0
    return float((found - wanted).norm() / wanted.norm())


def _disturb(job: Job) -> None:
    """Moves the weights, so that the network is no longer its own reference."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in job.parameters.values():
            value.add_(0.02 * torch.randn(value.shape, generator=generator))


@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("name", NAMES)
def test_any_split_into_micro_batches_gives_the_same_gradients(tmp_path: Path, name: str, method: MethodConfig) -> None:
    out = make_objective_run(tmp_path, OBJECTIVES[name])
    job = objective_job(out, objective_step(OBJECTIVES[name], method, micro_batch_size=8))
    _disturb(job)
    # Step 1 is the last, partial batch of the epoch.
    for index in (0, 1):
        wanted = _gradients(job, index)
        for size in (1, 3):
            again = at_a_time(job, micro_batch_size=size)
            assert _relative(_gradients(again, index), wanted) < 1e-6


@pytest.mark.parametrize("name", ["sft", "distill"])
def test_packed_rows_give_the_gradients_of_the_same_samples_unpacked(tmp_path: Path, name: str) -> None:
    samples, found = random_samples(8), []
    for size in (1, 4):
        out = make_objective_run(tmp_path / str(size), OBJECTIVES[name])
        write_rows(out / artifacts.DATA, samples, size=size)
        job = objective_job(out, objective_step(OBJECTIVES[name], FULL, micro_batch_size=8 // size))
        found.append(_gradients(job, 0))
    assert _relative(found[1], found[0]) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_training_lowers_the_loss_and_logs_finite_metrics(tmp_path: Path, name: str) -> None:
    out = make_objective_run(tmp_path, OBJECTIVES[name], held_out=4)
    run(objective_step(OBJECTIVES[name], LORA, epochs=6.0, eval_steps=6), out)
    lines = [json.loads(line) for line in (out / artifacts.METRICS).read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-2] < losses[0]
    evaluations = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in evaluations] == [6, 12]
    numbers = [value for line in lines for value in line.values()]
    assert all(value == value and abs(value) != float("inf") for value in numbers)
    if OBJECTIVES[name].kind in ("dpo", "orpo", "simpo"):
        assert lines[-2]["rewards/margins"] > lines[0]["rewards/margins"]
        assert 0 <= evaluations[-1]["eval_rewards/accuracies"] <= 1


@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path, name: str, method: MethodConfig) -> None:
    step = objective_step(OBJECTIVES[name], replace(method, dropout=0.1), checkpoint_steps=2, micro_batch_size=3)
    straight, stopped = (make_objective_run(tmp_path / part, OBJECTIVES[name]) for part in ("straight", "stopped"))
    wanted = run(step, straight)[0]
    with kill_before(3), pytest.raises(Killed):
        run(step, stopped)
    # Lost reference numbers are computed again from the weights that training began with.
    (stopped / "reference" / "train.safetensors").unlink()
    assert run(step, stopped)[0] == wanted
    numbers = [(out / "reference" / "train.safetensors").read_bytes() for out in (straight, stopped)]
    assert numbers[0] == numbers[1]


def test_held_out_rows_are_measured_alike_in_any_batch_size(tmp_path: Path) -> None:
    for name in ("sft", "dpo", "orpo", "kto"):
        out = make_objective_run(tmp_path / name, OBJECTIVES[name], held_out=7)
        job = objective_job(out, objective_step(OBJECTIVES[name], LORA, eval_steps=1))
        _disturb(job)
        sizes = [at_a_time(job, eval_batch_size=size) for size in (2, 7)]
        first, second = (held_out.measure(each) for each in sizes)
        assert first == pytest.approx(second, rel=1e-5)
        assert job.network.training is False
