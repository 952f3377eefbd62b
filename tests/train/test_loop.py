from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny import random_samples, write_store
from tests.train.runs import FULL, LORA, make_run, train_step
from tunerun import artifacts
from tunerun.base_model import read_base
from tunerun.config.schema import MethodConfig
from tunerun.errors import StageError
from tunerun.train import gradients, loop, stage
from tunerun.train.job import Job
from tunerun.train.ranks import Ranks


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


def _job(out: Path, method: MethodConfig, micro_batch_size: int, **train: object) -> Job:
    step = train_step(method, micro_batch_size=micro_batch_size, **train)
    job, _ = stage._prepare(step, read_base(out), out, {}, None, Ranks())
    return job


def _gradients(job: Job, index: int = 0) -> torch.Tensor:
    job.network.train()
    torch.manual_seed(0)
    gradients.accumulate(job, gradients.global_batch(job, index))
    return torch.cat([parameter.grad.flatten() for parameter in job.parameters.values()])


def _relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("method", [FULL, MethodConfig(rank=4, alpha=8.0)], ids=["full", "lora"])
@pytest.mark.parametrize("index", [0, 2], ids=["whole batch", "last partial batch"])
def test_any_split_into_micro_batches_gives_the_same_gradients(out: Path, method: MethodConfig, index: int) -> None:
    wanted = _gradients(_job(out, method, 8), index)
    for micro_batch_size in (1, 3, 4):
        assert _relative(_gradients(_job(out, method, micro_batch_size), index), wanted) < 1e-6


def test_packed_rows_give_the_gradients_of_the_same_samples_unpacked(tmp_path: Path) -> None:
    samples = random_samples(8)
    apart, packed = make_run(tmp_path / "apart", rows=8), make_run(tmp_path / "packed", rows=8, packed=True)
    write_store(apart / "data", [[sample] for sample in samples])
    write_store(packed / "data", [samples[:3], samples[3:]], packed=True)
    wanted = _gradients(_job(apart, FULL, 8))
    assert _relative(_gradients(_job(packed, FULL, 1)), wanted) < 1e-6


def test_recomputing_activations_changes_no_gradient(out: Path) -> None:
    job = _job(out, LORA, 4)
    wanted = _gradients(job)
    job.network.zero_grad()
    job.network.gradient_checkpointing_enable({"use_reentrant": False})
    assert torch.equal(_gradients(job), wanted)


def test_the_loss_is_the_mean_over_the_trained_tokens_of_the_global_batch(out: Path) -> None:
    losses = [loop.optimiser_step(_job(out, FULL, size), 0).loss for size in (1, 8)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_dropout_depends_on_seed_and_step_alone(out: Path) -> None:
    def losses(start: int) -> float:
        job = _job(out, LORA, 4)
        job.network.train()
        torch.manual_seed(start)
        return loop.optimiser_step(job, 3).grad_norm

    assert losses(1) == losses(2)


def test_a_batch_without_trained_tokens_is_an_error_that_names_its_samples(tmp_path: Path) -> None:
    out = make_run(tmp_path, rows=4)
    write_store(out / "data", [[([1, 2, 3], [0, 0, 0])], [([4, 5], [0, 0])]])
    with pytest.raises(StageError, match=r"step 1: no token of samples 0, 1 is trained on"):
        loop.optimiser_step(_job(out, FULL, 1), 0)


def test_a_loss_that_is_not_finite_stops_within_the_step_and_leaves_the_weights(tmp_path: Path) -> None:
    out = make_run(tmp_path, rows=8)
    job = _job(out, LORA, 1)
    with torch.no_grad():
        job.network.get_input_embeddings().weight[7] = float("nan")
    before = {name: value.clone() for name, value in job.parameters.items()}
    with pytest.raises(StageError, match=r"step 1: the loss is nan. .* computed from samples \d+, .* of the data"):
        loop.run(job, loop.Progressed(), stage.StopRequest(), [])
    assert all(torch.equal(before[name], value) for name, value in job.parameters.items())
    assert not (out / artifacts.CHECKPOINTS).exists()
