"""Out of memory while training: the same work in smaller pieces, with the same result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.tiny import random_samples, write_store
from tests.train.memory import allocate_too_much, memory_for
from tests.train.objective_runs import OBJECTIVES as CONFIGS
from tests.train.objective_runs import make_objective_run, objective_step
from tests.train.runs import FULL, Killed, kill_before, losses, make_run, metrics, train_step
from tunerun import artifacts, fits
from tunerun.config.schema import EvalConfig, MethodConfig
from tunerun.errors import StageError, TryAgain, UserError
from tunerun.fits import Fit
from tunerun.models import ask, generate
from tunerun.plan.steps import TrainStep
from tunerun.train import checkpoint, fitting, held_out
from tunerun.train.objectives import OBJECTIVES
from tunerun.train.stage import run

LORA = MethodConfig(rank=4, alpha=8.0)


def _found(out: Path) -> list[tuple[int, int, bool]]:
    return [(fit.step, fit.micro_batch_size, fit.activation_checkpointing) for fit in fits.read(out)]


CASES = {
    "lora": train_step(LORA),
    "full": train_step(FULL),
    "dropout": train_step(MethodConfig(rank=4, alpha=8.0, dropout=0.1), neftune_alpha=5.0),
    "packed": train_step(LORA, micro_batch_size=2, global_batch_size=4),
    "dpo": objective_step(CONFIGS["dpo"], LORA),
    "kto": objective_step(CONFIGS["kto"], LORA),
}


def _make(out: Path, name: str) -> Path:
    step = CASES[name]
    if step.objective.kind != "sft":
        return make_objective_run(out, step.objective, rows=20)
    return make_run(out, packed=name == "packed")


@pytest.mark.parametrize("name", CASES)
def test_a_step_that_does_not_fit_is_computed_again_as_if_planned_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    step, kind = CASES[name], CASES[name].objective.kind
    half = step.micro_batch_size // 2
    halved, planned = _make(tmp_path / "halved", name), _make(tmp_path / "planned", name)
    with memory_for(half, kind=kind):
        found = run(step, halved)
    wanted = run(replace(step, micro_batch_size=half), planned)
    assert found[0] == wanted[0]
    assert losses(halved) == losses(planned)
    part = "before the first step" if kind in ("dpo", "kto") else "in step 1"
    told = f"going on with micro-batch {half} in place of {2 * half}; the global batch stays "
    told += str(step.train.global_batch_size)
    assert f"out of memory {part}: {told}\n" in capsys.readouterr().out
    assert [item.kind for item in found] == [*(item.kind for item in wanted), "fitting"]


@pytest.mark.parametrize("name", ["lora", "full", "packed", "dpo", "kto"])
def test_the_result_is_that_of_enough_memory_up_to_rounding(tmp_path: Path, name: str) -> None:
    step = CASES[name]
    with memory_for(1, kind=step.objective.kind):
        short = run(step, _make(tmp_path / "short", name))[0]
    enough = run(step, _make(tmp_path / "enough", name))[0]
    file = artifacts.ADAPTER_WEIGHTS if short.kind == "adapter" else "model.safetensors"
    first, second = (load_file(tmp_path / part / short.path / file) for part in ("short", "enough"))
    assert short != enough
    for key, weight in first.items():
        assert torch.allclose(weight, second[key], rtol=1e-3, atol=1e-5), key


def test_memory_that_runs_out_later_changes_the_steps_from_then_on_and_is_kept(tmp_path: Path) -> None:
    out = make_run(tmp_path)
    _run_short_at(4, train_step(LORA), out)
    assert _found(out) == [(0, 4, False), (4, 2, False)]
    assert json.loads((out / artifacts.FITTING).read_text())["schema"] == fits.SCHEMA


def _run_short_at(step: int, what: TrainStep, out: Path, *, kill: int | None = None) -> Any:
    """Trains with memory for two rows in one step only, from 1; killed before another, from 0."""
    begun: list[int] = []
    original = fitting.Fitting.begin

    def begin(self: fitting.Fitting, number: int) -> None:
        begun.append(number)
        original(self, number)

    with pytest.MonkeyPatch.context() as patch, memory_for(2, when=lambda _: begun[-1] == step):
        patch.setattr(fitting.Fitting, "begin", begin)
        if kill is None:
            return run(what, out)[0]
        with kill_before(kill), pytest.raises(Killed):
            run(what, out)
        return None


@pytest.mark.parametrize("every", [None, 2, 3], ids=["no checkpoint", "one after it", "one before it"])
@pytest.mark.parametrize("kill", [4, 5])
def test_a_run_that_ran_out_of_memory_and_was_killed_resumes_to_the_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], every: int | None, kill: int
) -> None:
    step = train_step(MethodConfig(rank=4, alpha=8.0, dropout=0.1), checkpoint_steps=every)
    straight, stopped = make_run(tmp_path / "straight"), make_run(tmp_path / "stopped")
    wanted = _run_short_at(4, step, straight)
    _run_short_at(4, step, stopped, kill=kill)
    # Memory was short for a moment only: without the record, step 4 would be computed as planned.
    assert run(step, stopped)[0] == wanted
    assert "memory ran out before: micro-batch 2 from step 4 on (fitting.json)" in capsys.readouterr().out
    assert losses(stopped) == losses(straight)
    assert (stopped / artifacts.FITTING).read_bytes() == (straight / artifacts.FITTING).read_bytes()


def test_a_replay_cuts_every_step_as_it_was_cut(tmp_path: Path) -> None:
    step = train_step(MethodConfig(rank=4, alpha=8.0, dropout=0.1), checkpoint_steps=2)
    straight, replayed = make_run(tmp_path / "straight"), make_run(tmp_path / "replayed")
    wanted = _run_short_at(4, step, straight)
    # As `tunerun replay` does: the plan's own choice is set, and what was found is handed over.
    config = replace(step.train, micro_batch_size=4, activation_checkpointing=False)
    again = replace(step, train=config, fits=fits.read(straight))
    with kill_before(4), pytest.raises(Killed):
        run(again, replayed)
    # `tunerun resume` of the replay knows nothing of the run it replays.
    assert run(replace(again, fits=()), replayed)[0] == wanted
    assert (replayed / artifacts.FITTING).read_bytes() == (straight / artifacts.FITTING).read_bytes()


def test_when_one_row_is_too_much_activations_are_computed_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short, planned = make_run(tmp_path / "short"), make_run(tmp_path / "planned")
    step = train_step(LORA, checkpoint_steps=2)
    with memory_for(0, when=lambda network: not network.is_gradient_checkpointing):
        found = run(step, short)[0]
    assert _found(short) == [(0, 4, False), (1, 2, False), (1, 1, False), (1, 1, True)]
    told = "out of memory in step 1: going on with activations computed twice (train.activation_checkpointing)"
    assert told in capsys.readouterr().out
    assert run(replace(step, micro_batch_size=1, activation_checkpointing=True), planned)[0] == found


def test_when_nothing_helps_the_error_says_what_may_and_the_steps_done_are_kept(tmp_path: Path) -> None:
    out, straight = make_run(tmp_path / "run"), make_run(tmp_path / "straight")
    step = train_step(FULL)
    with pytest.raises(StageError) as caught, no_memory_from(4):
        run(step, out)
    message = str(caught.value)
    assert message.startswith("out of memory in step 4 with one row at a time: 268,435,456.0 GiB more were asked for.")
    assert "What helps: a lower data.max_length, method=lora, train.optimizer=adamw_8bit, a smaller model." in message
    assert [path.name for path in (out / artifacts.CHECKPOINTS).iterdir()] == ["step-3"]
    # On a machine with more memory it goes on from there, with what was found.
    assert losses(out) == losses(_finished(step, straight))[:3]
    assert run(step, out)[0].kind == "model"
    assert [number for number, _ in losses(out)] == [1, 2, 3, 4, 5, 6]


@contextmanager
def no_memory_from(step: int) -> Iterator[None]:
    """Has memory for no micro-batch from a step on, numbered from 1."""
    begun: list[int] = []
    original = fitting.Fitting.begin

    def begin(self: fitting.Fitting, number: int) -> None:
        begun.append(number)
        original(self, number)

    whole = OBJECTIVES["sft"]

    def loss(*arguments: Any) -> Any:
        if begun[-1] >= step:
            allocate_too_much()
        return whole.loss(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting.Fitting, "begin", begin)
        patch.setitem(OBJECTIVES, "sft", replace(whole, loss=loss))
        yield


def _finished(step: TrainStep, out: Path) -> Path:
    run(step, out)
    return out


def test_where_ranks_work_together_the_stage_asks_to_be_started_again_with_what_was_found(tmp_path: Path) -> None:
    step = train_step(LORA, checkpoint_steps=1)
    step = replace(step, placement=replace(step.placement, strategy="ddp"))
    stopped, planned = make_run(tmp_path / "stopped"), make_run(tmp_path / "planned")
    told = r"out of memory in step 1: going on with micro-batch 2 in place of 4; the global batch stays"
    with memory_for(2), pytest.raises(TryAgain, match=told):
        run(step, stopped)
    assert run(step, stopped)[0] == run(replace(step, micro_batch_size=2), planned)[0]


def test_held_out_rows_and_answers_take_less_at_a_time_and_change_no_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = EvalConfig(prompts=("Who are you?", "你好", "and you?"), max_new_tokens=4, batch_size=8)
    dropout = MethodConfig(rank=4, alpha=8.0, dropout=0.1)
    step = replace(train_step(dropout, eval_steps=2, checkpoint_steps=4), eval=config)
    short, enough = make_run(tmp_path / "short"), make_run(tmp_path / "enough")
    for out in (short, enough):
        write_store(out / artifacts.EVAL_DATA, [[sample] for sample in random_samples(6, seed=9)])
    wanted = run(step, enough)[0]
    greedily = generate.answer_greedily

    def answer(network: Any, prompts: Any, **settings: Any) -> Any:
        if len(prompts) > 1:
            allocate_too_much()
        return greedily(network, prompts, **settings)

    monkeypatch.setattr(generate, "answer_greedily", answer)
    with memory_for(4, when=lambda network: not network.training):
        assert run(step, short)[0] == wanted
    printed = capsys.readouterr().out
    assert "out of memory in step 2: going on with 4 in place of 8 (eval.batch_size)" in printed
    assert "out of memory in step 4: going on with 1 in place of 2 (eval.batch_size)" in printed
    measured = [[line["eval_loss"] for line in metrics(out) if "eval_loss" in line] for out in (short, enough)]
    assert measured[0] == pytest.approx(measured[1], rel=1e-5)
    answers = [(out / artifacts.CHECKPOINTS / "step-4" / checkpoint.ANSWERS).read_text() for out in (short, enough)]
    assert answers[0] == answers[1]


def test_a_checkpoint_is_written_when_not_even_one_question_can_be_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ask, "answer", lambda *_, **__: allocate_too_much())
    step = replace(train_step(LORA, checkpoint_steps=2), eval=EvalConfig(prompts=("Who are you?",)))
    run(step, make_run(tmp_path))
    assert "warning: step 2: eval.prompts are not answered: out of memory in step 2" in capsys.readouterr().err
    assert (tmp_path / artifacts.CHECKPOINTS / "step-4").is_dir()


def test_the_tensors_of_a_failed_attempt_are_gone_before_the_next(tmp_path: Path) -> None:
    whole, kept, alive = OBJECTIVES["sft"], list[Any](), list[bool]()

    def loss(network: Any, batch: Any, totals: Any, setting: Any) -> Any:
        alive.extend(one() is not None for one in kept)
        kept.clear()
        outcome = whole.loss(network, batch, totals, setting)
        if batch.rows > 2:
            kept.extend([weakref.ref(outcome.loss), weakref.ref(batch.laid.input_ids)])
            allocate_too_much()
        return outcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OBJECTIVES, "sft", replace(whole, loss=loss))
        run(train_step(LORA), make_run(tmp_path))
    assert alive == [False, False]


def test_other_errors_are_not_taken_for_missing_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(job: Any) -> Any:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(held_out, "measure", measure)
    out = make_run(tmp_path)
    write_store(out / artifacts.EVAL_DATA, [[sample] for sample in random_samples(2)])
    with pytest.raises(RuntimeError, match="shape mismatch"):
        run(train_step(LORA, eval_steps=1), out)
    assert not (out / artifacts.FITTING).exists()


CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.2 GiB is free."
)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(CUDA),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_allocators_say_it_in_several_ways(error: Exception) -> None:
    assert fitting.is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes"), ValueError("out of memory"), OSError(12, "")])
def test_what_is_no_missing_memory(error: Exception) -> None:
    assert not fitting.is_out_of_memory(error)


@pytest.mark.parametrize(("before", "rows", "after"), [(8, 16, 4), (6, 12, 3), (15, 15, 5), (2, 16, 1), (1, 16, None)])
def test_micro_batches_are_halved_and_divide_what_a_step_has(before: int, rows: int, after: int | None) -> None:
    now = Fit(step=3, micro_batch_size=before, activation_checkpointing=False, eval_batch_size=8)
    found = fitting.smaller(now, rows=rows, recomputes=False)
    assert (None if found is None else found.micro_batch_size) == after


def test_what_another_training_found_is_not_taken_over(tmp_path: Path) -> None:
    out = make_run(tmp_path)
    with memory_for(2), kill_before(2), pytest.raises(Killed):
        run(train_step(LORA), out)
    assert len(fits.read(out)) == 2
    made = run(train_step(MethodConfig(rank=8, alpha=8.0)), out)
    assert not (out / artifacts.FITTING).exists()
    assert "fitting" not in [item.kind for item in made]


@pytest.mark.parametrize(
    ("content", "told"),
    [("{", "is damaged"), ('{"schema": 1}', "is damaged"), ('{"schema": 9, "key": "", "fits": []}', "a newer tunerun")],
)
def test_a_record_that_cannot_be_read_stops_training(tmp_path: Path, content: str, told: str) -> None:
    out = make_run(tmp_path)
    (out / artifacts.FITTING).write_text(content)
    with pytest.raises(UserError, match=told):
        run(train_step(LORA), out)


def test_a_record_of_schema_1_is_read(tmp_path: Path) -> None:
    written = {"step": 3, "micro_batch_size": 2, "activation_checkpointing": False, "eval_batch_size": 8}
    artifacts.write_json(tmp_path / artifacts.FITTING, {"schema": 1, "key": "k", "fits": [written]})
    assert fits.read(tmp_path) == fits.read(tmp_path, "k") == (Fit(**written),)
    assert fits.read(tmp_path, "other") == ()


def test_a_process_that_may_take_no_more_memory_trains_to_the_same_bits(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.train.limited", str(tmp_path), "8", "100"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    limited, planned = done.stdout.splitlines()[-2:]
    found = fits.read(tmp_path / "limited")
    assert found[0].micro_batch_size == 8
    assert found[-1].micro_batch_size < 8
    assert {fit.step for fit in found[1:]} == {1}
    assert limited == planned
