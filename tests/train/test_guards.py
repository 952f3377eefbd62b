"""What happens when numbers are not numbers, losses jump, or the held-out loss rises again."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import random_samples, write_store
from tests.train.runs import (
    FULL,
    LORA,
    Killed,
    after_accumulate,
    before_step,
    break_gradients,
    kill_before,
    losses,
    make_run,
    metrics,
    train_step,
)
from tunerun import artifacts
from tunerun.errors import Preempted, StageError
from tunerun.train import fitting, gradients, health, held_out, loop, recovery
from tunerun.train.checkpoint import Progressed
from tunerun.train.stage import run


@pytest.fixture
def nan_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the gradients of some steps, numbered from 1, NaN."""
    return partial(break_gradients, monkeypatch)


def _weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / artifacts.ADAPTER / artifacts.ADAPTER_WEIGHTS)


def _same(one: Path, other: Path) -> bool:
    first, second = _weights(one), _weights(other)
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_step_that_is_not_finite_stops_training_and_names_its_samples(tmp_path: Path, nan_in: Any) -> None:
    nan_in(3)
    with pytest.raises(
        StageError, match=r"step 3: the gradient norm is nan. It was computed from samples \d+, .*of the"
    ):
        run(train_step(checkpoint_steps=2), make_run(tmp_path))
    assert [path.name for path in (tmp_path / artifacts.CHECKPOINTS).iterdir()] == ["step-2"]


def test_a_skipped_step_moves_nothing_and_is_told(
    tmp_path: Path, nan_in: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    nan_in(3)
    out = make_run(tmp_path / "skipped")
    run(train_step(on_nonfinite="skip"), out)
    assert [step for step, _ in losses(out)] == [1, 2, 4, 5, 6]
    assert "warning: step 3: the gradient norm is nan. It was computed from samples" in capsys.readouterr().err
    assert all(torch.isfinite(weight).all() for weight in _weights(out).values())


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_passing_over_a_step_resumes_to_the_same_bits(tmp_path: Path, nan_in: Any, policy: Any) -> None:
    nan_in(4)
    step = train_step(on_nonfinite=policy, checkpoint_steps=2, ema_decay=0.9)
    straight, stopped = make_run(tmp_path / "straight"), make_run(tmp_path / "stopped")
    run(step, straight)
    with kill_before(4), pytest.raises(Killed):
        run(step, stopped)
    run(step, stopped)
    assert _same(straight, stopped)


def test_rollback_takes_back_the_steps_since_the_checkpoint(
    tmp_path: Path, nan_in: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    step = train_step(on_nonfinite="rollback", checkpoint_steps=2, schedule="constant", warmup_fraction=0.0)
    # Steps 3 and 4 are undone, so that steps 5 and 6 follow on step 2.
    nan_in(4)
    back, other = make_run(tmp_path / "back"), make_run(tmp_path / "other")
    run(step, back)
    assert "went back to the weights of step-2" in capsys.readouterr().err
    nan_in(3, 4)
    run(replace(step, train=replace(step.train, on_nonfinite="skip")), other)
    assert _same(back, other)


@pytest.mark.parametrize("keep", [1, 2])
def test_rollback_goes_past_a_checkpoint_that_a_signal_made(
    tmp_path: Path, nan_in: Any, keep: int, capsys: pytest.CaptureFixture[str]
) -> None:
    nan_in(4)
    step = train_step(on_nonfinite="rollback", checkpoint_steps=2, keep_checkpoints=keep)
    straight, stopped = make_run(tmp_path / "straight"), make_run(tmp_path / "stopped")
    run(step, straight)
    with before_step(2, lambda: signal.raise_signal(signal.SIGTERM)), pytest.raises(Preempted):
        run(step, stopped)
    assert (stopped / artifacts.CHECKPOINTS / "step-3").is_dir()
    run(step, stopped)
    assert capsys.readouterr().err.count("went back to the weights of step-2") == 2
    assert _same(straight, stopped)


def test_rollback_without_a_checkpoint_and_endless_skipping_stop(tmp_path: Path, nan_in: Any) -> None:
    nan_in(*range(1, 20))
    with pytest.raises(StageError, match=r"no checkpoint to go back to\. Lower train\.checkpoint_steps"):
        run(train_step(on_nonfinite="rollback", checkpoint_steps=2), make_run(tmp_path / "a"))
    with pytest.raises(StageError, match=r"step 11: .*; the 10 steps before it failed too"):
        run(train_step(on_nonfinite="skip", epochs=6.0), make_run(tmp_path / "b"))


def test_a_training_whose_every_step_was_passed_over_publishes_nothing(tmp_path: Path, nan_in: Any) -> None:
    nan_in(1, 2, 3)
    with pytest.raises(StageError, match="all 3 steps were passed over, so that nothing was trained"):
        run(train_step(on_nonfinite="skip", max_steps=3), make_run(tmp_path))
    assert not (tmp_path / artifacts.ADAPTER).exists()


def test_health_names_twenty_samples_and_counts_the_rest() -> None:
    fault = health.NotFinite(float("inf"), "gradient norm", step=1, samples=range(25))
    assert "samples 0, 1, " in fault.told
    assert fault.told.endswith(", 19 and 5 more of the data")


@pytest.mark.parametrize("factor", [2.5, 10.0])
def test_a_spike_is_noticed_once_training_has_found_its_level(factor: float) -> None:
    noise = torch.randn(100, generator=torch.Generator().manual_seed(0)) * 0.1
    before = (2.0 + noise).tolist()
    assert health.is_spike(2.0 * factor, before)
    assert not health.is_spike(2.0 * factor, before[:10])


def test_normal_training_raises_no_alarm() -> None:
    """200 runs of 300 steps whose loss falls, with the scatter of small batches."""
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        level = 0.5 + 2.0 * torch.exp(-torch.arange(300) / 60.0)
        found = (level * torch.exp(0.25 * torch.randn(300, generator=generator))).tolist()
        alarms = [place for place in range(300) if health.is_spike(found[place], found[max(0, place - 100) : place])]
        assert alarms == []


def test_a_spike_in_training_is_told_with_its_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def jump(job: Any, index: int, found: Any) -> Any:
        losses, sums = found
        return ([100.0] if index == 25 else losses), sums

    after_accumulate(monkeypatch, jump)
    run(train_step(max_steps=28, global_batch_size=2, learning_rate=1e-4), make_run(tmp_path, rows=8))
    err = capsys.readouterr().err
    assert "warning: step 26: the loss is 100, " in err
    assert err.count("warning: step") == 1


def _with_eval_losses(monkeypatch: pytest.MonkeyPatch, values: dict[int, float]) -> None:
    """Sets what is measured on held-out rows, by the number of the measurement, from 1."""
    calls = iter(range(1, 100))

    def measure(job: Any) -> dict[str, float]:
        return {"eval_loss": values[next(calls)]}

    monkeypatch.setattr(held_out, "measure", measure)


def _run_with_eval(tmp_path: Path, name: str) -> Path:
    out = make_run(tmp_path / name)
    write_store(out / artifacts.EVAL_DATA, [[sample] for sample in random_samples(4, seed=9)])
    return out


@pytest.mark.parametrize("method", [LORA, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("average", [None, 0.5])
def test_the_weights_with_the_lowest_held_out_loss_are_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Any, average: float | None
) -> None:
    step = train_step(method, eval_steps=1, keep_best=True, keep_checkpoints=1, ema_decay=average, schedule="constant")
    best, short = _run_with_eval(tmp_path, "best"), _run_with_eval(tmp_path, "short")
    _with_eval_losses(monkeypatch, {1: 3.0, 2: 2.0, 3: 1.0, 4: 1.5, 5: float("nan"), 6: 2.5})
    made = run(replace(step, train=replace(step.train, checkpoint_steps=1)), best)[0]
    assert sorted(path.name for path in (best / artifacts.CHECKPOINTS).iterdir()) == ["step-3", "step-5"]
    plain = replace(step.train, keep_best=False, eval_steps=None, max_steps=3)
    assert run(replace(step, train=plain), short)[0].sha256 == made.sha256


def test_where_the_best_weights_are_damaged_the_last_ones_can_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, plain = _run_with_eval(tmp_path, "best"), make_run(tmp_path / "plain")
    step = train_step(eval_steps=1, keep_best=True, checkpoint_steps=1)
    _with_eval_losses(monkeypatch, {number: 1.0 + abs(number - 3) for number in range(1, 9)})
    with kill_before(5), pytest.raises(Killed):
        run(step, out)
    (out / artifacts.CHECKPOINTS / "step-3" / artifacts.ADAPTER / artifacts.ADAPTER_WEIGHTS).write_bytes(b"")
    with pytest.raises(StageError, match=r"step 3, which .* are damaged\..*--allow train\.keep_best"):
        run(step, out)
    last = replace(step, train=replace(step.train, keep_best=False), allow=("train.keep_best",))
    run(last, out)
    run(train_step(), plain)
    assert _same(out, plain)


def test_training_ends_when_the_held_out_loss_no_longer_falls_also_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = _run_with_eval(tmp_path, "early")
    step = train_step(eval_steps=1, early_stopping_evals=2, checkpoint_steps=2, epochs=4.0)
    _with_eval_losses(monkeypatch, {1: 3.0, 2: 2.0, 3: 2.1, 4: 2.2})
    with kill_before(2), pytest.raises(Killed):
        run(step, out)
    _with_eval_losses(monkeypatch, {1: 2.1, 2: 2.2})
    run(step, out)
    assert [line["step"] for line in metrics(out) if "eval_loss" in line] == [1, 2, 3, 4]
    assert losses(out)[-1][0] == 4


def test_a_signal_in_the_step_that_ends_training_early_is_followed_by_no_further_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = _run_with_eval(tmp_path, "early")
    step = train_step(eval_steps=1, early_stopping_evals=2, epochs=4.0)
    _with_eval_losses(monkeypatch, {1: 2.0, 2: 2.1, 3: 2.2})
    with before_step(2, lambda: signal.raise_signal(signal.SIGTERM)), pytest.raises(Preempted):
        run(step, out)
    run(step, out)
    assert losses(out)[-1][0] == 3


def test_a_loss_that_is_nan_is_never_the_best() -> None:
    first = recovery.judge(Progressed(step=1), float("nan"), higher_is_better=False)
    assert (first.best_step, first.evals_since_best) == (None, 1)
    second = recovery.judge(replace(first, step=2), 5.0, higher_is_better=False)
    assert (second.best_step, second.best_value, second.evals_since_best) == (2, 5.0, 0)


def test_the_guards_take_less_than_2_percent_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"guards": 0.0, "steps": 0.0}

    def time_within(owner: Any, name: str, kind: str) -> None:
        function = getattr(owner, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                seconds[kind] += time.thread_time() - began

        monkeypatch.setattr(owner, name, timed)

    time_within(health, "check_trained", "guards")
    time_within(gradients, "check_losses", "guards")
    time_within(loop, "_warn_of_spike", "guards")
    time_within(loop, "agreed_signal", "guards")
    time_within(fitting.Fitting, "begin", "guards")
    time_within(loop, "optimiser_step", "steps")
    run(train_step(LORA, max_steps=60), make_run(tmp_path, base={"hidden_size": 256, "intermediate_size": 512}))
    print(f"guards take {seconds['guards'] / seconds['steps']:.2%} of {seconds['steps'] / 60:.4f} s")
    assert 0 < seconds["guards"] < 0.02 * seconds["steps"]
