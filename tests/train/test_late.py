"""The host looks at the numbers of a step while the device is at the next one, as on a GPU; here on a CPU."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train.runs import LORA, break_gradients, losses, make_run, metrics, train_step
from tunerun import artifacts
from tunerun.base_model import read_base
from tunerun.errors import Preempted, StageError
from tunerun.train import loop, optim, stage
from tunerun.train.engines import Parts
from tunerun.train.engines.plain import Plain
from tunerun.train.job import Job
from tunerun.train.ranks import Ranks
from tunerun.train.stage import run


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the engine of one process work as on a GPU."""

    def on_device(parts: Parts) -> Plain:
        engine = Plain(parts)
        engine.moves_on_device = optim.skips_on_device(engine._optimisers)
        return engine

    monkeypatch.setattr(stage, "make_engine", on_device)


def _job(out: Path, train: dict[str, Any]) -> Job:
    job, _ = stage._prepare(train_step(**train), read_base(out), out, {}, None, Ranks())
    return job


def _weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / artifacts.ADAPTER / artifacts.ADAPTER_WEIGHTS)


def _same(one: Path, other: Path) -> bool:
    first, second = _weights(one), _weights(other)
    return all(torch.equal(first[name], second[name]) for name in first)


def _numbers(out: Path) -> list[tuple[Any, ...]]:
    return [(line["step"], line["loss"], line["grad_norm"], line["tokens"]) for line in metrics(out)]


def test_bits_and_metrics_are_those_of_waiting_for_each_step(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    step = train_step(LORA, checkpoint_steps=4)
    waiting, ahead = make_run(tmp_path / "waiting"), make_run(tmp_path / "ahead")
    run(step, waiting)
    request.getfixturevalue("late")
    run(step, ahead)
    assert _same(waiting, ahead)
    assert _numbers(ahead) == _numbers(waiting)


def test_a_step_is_asked_for_before_the_last_one_is_looked_at_unless_its_weights_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: None
) -> None:
    order: list[str] = []
    start, finish = loop.start_step, loop.finish_step

    def noted_start(job: Job, index: int) -> Any:
        order.append(f"start {index + 1}")
        return start(job, index)

    def noted_finish(job: Job, started: Any, began: float) -> Any:
        order.append(f"finish {started.index + 1}")
        return finish(job, started, began)

    monkeypatch.setattr(loop, "start_step", noted_start)
    monkeypatch.setattr(loop, "finish_step", noted_finish)
    run(train_step(checkpoint_steps=4, max_steps=5), make_run(tmp_path))
    first = ["start 1", "start 2", "finish 1", "start 3", "finish 2", "start 4", "finish 3", "finish 4"]
    assert order == [*first, "start 5", "finish 5"]


def test_gradients_that_are_not_finite_move_nothing_though_they_are_noticed_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    break_gradients(monkeypatch, 3)
    step = train_step(on_nonfinite="skip")
    waiting, ahead = make_run(tmp_path / "waiting"), make_run(tmp_path / "ahead")
    run(step, waiting)
    request.getfixturevalue("late")
    run(step, ahead)
    assert [number for number, _ in losses(ahead)] == [1, 2, 4, 5, 6]
    assert capsys.readouterr().err.count("warning: step 3: the gradient norm is nan. It was computed from samples") == 2
    assert _same(waiting, ahead)


def test_training_stops_within_a_step_and_names_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: None
) -> None:
    break_gradients(monkeypatch, 3)
    began: list[int] = []
    start = loop.start_step
    monkeypatch.setattr(loop, "start_step", lambda job, index: (began.append(index + 1), start(job, index))[1])
    with pytest.raises(StageError, match=r"step 3: the gradient norm is nan. It was computed from samples \d+, "):
        run(train_step(checkpoint_steps=2), make_run(tmp_path))
    assert began == [1, 2, 3, 4]
    assert [path.name for path in (tmp_path / artifacts.CHECKPOINTS).iterdir()] == ["step-2"]


def test_a_signal_is_answered_with_a_checkpoint_of_the_weights_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    straight, stopped = make_run(tmp_path / "straight"), make_run(tmp_path / "stopped")
    run(train_step(), straight)
    request.getfixturevalue("late")
    start = loop.start_step

    def signalled(job: Job, index: int) -> Any:
        if index == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return start(job, index)

    with monkeypatch.context() as patch, pytest.raises(Preempted, match=r"after step \d of 6"):
        patch.setattr(loop, "start_step", signalled)
        run(train_step(), stopped)
    run(train_step(), stopped)
    assert _same(straight, stopped)


@pytest.mark.parametrize(("optimizer", "possible"), [("adamw", True), ("lion", False), ("muon", False)])
def test_only_optimisers_that_can_skip_on_the_device_are_read_late(
    tmp_path: Path, optimizer: Any, possible: bool
) -> None:
    weight = torch.nn.Parameter(torch.ones(4, 4))
    made = optim.make_optimisers({"weight": weight}, train_step(optimizer=optimizer).train)
    assert optim.skips_on_device(made) == possible
    if possible:
        for skip, moved in ((True, False), (False, True)):
            before = weight.detach().clone()
            weight.grad = torch.full_like(weight, float("nan") if skip else 1.0)
            optim.apply(made, 0.1, skip=torch.tensor(skip))
            assert bool((weight != before).any()) == moved
            assert weight.grad is None


@pytest.mark.parametrize("train", [{}, {"ema_decay": 0.9}, {"on_nonfinite": "rollback"}, {"optimizer": "lion"}])
def test_numbers_are_read_late_only_where_nothing_has_to_be_undone(
    tmp_path: Path, train: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    out = make_run(tmp_path)
    assert not _job(out, train).reads_late
    request.getfixturevalue("late")
    assert _job(out, train).reads_late == (not train)
