"""Stopped after any step, training goes on to the same bits: weights, and the loss of every step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.train.objective_runs import OBJECTIVES, make_objective_run, objective_step
from tests.train.runs import FULL, LORA, Killed, kill_before, losses, make_run, train_step
from tunerun.config.schema import MethodConfig
from tunerun.plan.steps import TrainStep
from tunerun.train.stage import run

ROWS = 20

CASES = {
    "full": train_step(FULL),
    "lora": train_step(LORA),
    "lora packed": train_step(LORA, micro_batch_size=1, global_batch_size=2),
    "accumulation 4": train_step(LORA, micro_batch_size=2),
    "noise and average": train_step(LORA, neftune_alpha=5.0, ema_decay=0.9),
    "full, average": train_step(FULL, ema_decay=0.9),
    "pissa, average": train_step(replace(LORA, kind="pissa"), ema_decay=0.9),
    "frozen, average": train_step(MethodConfig(kind="freeze", layers=1), ema_decay=0.9),
    "8-bit AdamW": train_step(FULL, optimizer="adamw_8bit", learning_rate=1e-3),
    "Lion": train_step(LORA, optimizer="lion", learning_rate=1e-3),
    "Adafactor": train_step(FULL, optimizer="adafactor", learning_rate=1e-3),
    "Muon": train_step(FULL, optimizer="muon"),
    "dpo": objective_step(OBJECTIVES["dpo"], LORA),
    "kto": objective_step(OBJECTIVES["kto"], LORA),
}


def _make(out: Path, step: TrainStep, *, packed: bool) -> Path:
    if step.objective.kind != "sft":
        return make_objective_run(out, step.objective, rows=ROWS)
    return make_run(out, rows=ROWS, packed=packed)


def _resumed_equals_straight(tmp_path: Path, step: TrainStep, stops: list[int], *, packed: bool) -> None:
    """Trains straight through, and stopped before each of some steps, numbered from 0."""
    straight = _make(tmp_path / "straight", step, packed=packed)
    wanted = run(step, straight)[0]
    for stop in stops:
        stopped = _make(tmp_path / f"stopped-{stop}", step, packed=packed)
        with kill_before(stop), pytest.raises(Killed):
            run(step, stopped)
        assert not (stopped / wanted.path).exists()
        assert run(step, stopped)[0] == wanted
        assert losses(stopped) == losses(straight)


@pytest.mark.parametrize("name", CASES)
def test_resuming_is_exact(tmp_path: Path, name: str) -> None:
    if name == "8-bit AdamW":
        pytest.importorskip("bitsandbytes")
    # 3 steps an epoch: a checkpoint at its border is followed by one inside the next epoch.
    step = _with_checkpoints(CASES[name], every=3 if name in ("full", "lora") else 2)
    _resumed_equals_straight(tmp_path, step, [3, 5] if name in ("full", "lora") else [4], packed="packed" in name)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CASES)
def test_resuming_at_every_step_is_exact(tmp_path: Path, name: str) -> None:
    if name == "8-bit AdamW":
        pytest.importorskip("bitsandbytes")
    step = _with_checkpoints(CASES[name], every=1, steps=24)
    _resumed_equals_straight(tmp_path, step, list(range(1, 24)), packed="packed" in name)


def _with_checkpoints(step: TrainStep, *, every: int, steps: int | None = None) -> TrainStep:
    return replace(step, train=replace(step.train, checkpoint_steps=every, max_steps=steps))


def test_other_threads_and_micro_batches_go_on_and_say_that_it_is_inexact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = make_run(tmp_path, rows=ROWS)
    with kill_before(3), pytest.raises(Killed):
        run(train_step(checkpoint_steps=2), out)
    made = run(train_step(checkpoint_steps=2, threads=2, micro_batch_size=2), out)
    printed = capsys.readouterr().out
    assert "going on from step-2: inexact because hardware.threads was 1 and is 2 now; " in printed
    assert "train.micro_batch_size was 4 and is 2 now" in printed
    assert made[0].path == "adapter"


def test_an_exact_resume_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = make_run(tmp_path, rows=ROWS)
    with kill_before(3), pytest.raises(Killed):
        run(train_step(checkpoint_steps=2), out)
    run(train_step(checkpoint_steps=2), out)
    assert "going on from step-2: exact" in capsys.readouterr().out


def test_an_allowed_key_may_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = make_run(tmp_path, rows=ROWS)
    with kill_before(3), pytest.raises(Killed):
        run(train_step(checkpoint_steps=2), out)
    other = replace(train_step(checkpoint_steps=2, learning_rate=1e-3), allow=("train.learning_rate",))
    run(other, out)
    assert "inexact because train.learning_rate was 0.01 and is 0.001 now" in capsys.readouterr().out
