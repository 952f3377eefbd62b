"""What the model in training answers: beside checkpoints, and to held-out rows."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.tiny import random_samples, write_store
from tests.train.runs import FULL, LORA, Killed, before_step, kill_before, losses, make_run, metrics, train_step
from tunerun import artifacts, text_metrics
from tunerun.config.schema import EvalConfig, MethodConfig
from tunerun.errors import Preempted, UserError
from tunerun.formats import checkpoints
from tunerun.formats.tokens import TokenStore
from tunerun.models import adapters, ask, held, references
from tunerun.plan.steps import TrainStep
from tunerun.train import checkpoint, loop
from tunerun.train.stage import run

PROMPTS = ("Who are you?", "你好", "one plus one", "fox", "lazy dog", "世界")


def _with_prompts(method: MethodConfig = LORA, *, longest: int = 4, **train: Any) -> TrainStep:
    return replace(train_step(method, **train), eval=EvalConfig(prompts=PROMPTS, max_new_tokens=longest))


def _checkpointed(out: Path, step: int, weights: Mapping[str, Any] | None = None) -> Any:
    """Loads what a checkpoint of a run holds as a model, or puts other weights, by parameter, in their place."""
    folder = out / artifacts.CHECKPOINTS / f"step-{step}"
    adapted = (folder / artifacts.ADAPTER).is_dir()
    model = held.load_model(
        out / "base" if adapted else folder / "model", dtype=None, device="cpu", attention="sdpa",
        trust_remote_code=False,
    )  # fmt: skip
    model = model.float()
    if adapted:
        model = adapters.load_adapter(model, folder / artifacts.ADAPTER, trainable=False).get_base_model()
    parameters = dict(model.named_parameters())
    for name, weight in (weights or {}).items():
        parameters[name].data.copy_(weight)
    return model.eval()


@pytest.mark.parametrize("method", [LORA, FULL, MethodConfig(kind="pissa", rank=4)], ids=["lora", "full", "pissa"])
def test_a_checkpoint_holds_the_weights_that_gave_the_answers_beside_it(tmp_path: Path, method: MethodConfig) -> None:
    out = make_run(tmp_path)
    run(_with_prompts(method, longest=12, checkpoint_steps=4, ema_decay=0.99, learning_rate=5e-2), out)
    folder = out / artifacts.CHECKPOINTS / "step-4"
    lines = [json.loads(line) for line in (folder / checkpoint.ANSWERS).read_text().splitlines()]
    asked = ask.read_questions(out / "base", PROMPTS, chat=True, chat_template=None)
    assert ask.answer(_checkpointed(out, 4), asked, max_new_tokens=12, batch_size=8) == lines
    if method.kind != "pissa":
        # Those that training goes on with are others, and answer something else.
        moving = _checkpointed(out, 4, load_file(folder / checkpoints.MOVING))
        assert ask.answer(moving, asked, max_new_tokens=12, batch_size=8) != lines


def test_prompts_are_answered_at_each_checkpoint_and_change_no_bit(tmp_path: Path) -> None:
    asked, plain = make_run(tmp_path / "asked"), make_run(tmp_path / "plain")
    assert run(_with_prompts(checkpoint_steps=2, ema_decay=0.9), asked)[0] == run(train_step(ema_decay=0.9), plain)[0]
    for number in (2, 4):
        found = checkpoint.read(asked / artifacts.CHECKPOINTS, number)
        assert found is not None
        lines = [json.loads(line) for line in (found.folder / checkpoint.ANSWERS).read_text().splitlines()]
        assert tuple(line["prompt"] for line in lines) == PROMPTS
        assert all(line["tokens"] <= 4 for line in lines)


def test_a_checkpoint_made_for_a_signal_takes_no_time_for_answers(tmp_path: Path) -> None:
    out = make_run(tmp_path)
    with before_step(1, lambda: signal.raise_signal(signal.SIGTERM)), pytest.raises(Preempted):
        run(_with_prompts(), out)
    assert not (out / artifacts.CHECKPOINTS / "step-2" / checkpoint.ANSWERS).exists()


def _with_held_out(out: Path, rows: list[Any] | None = None) -> Path:
    make_run(out)
    samples = random_samples(20)
    write_store(out / artifacts.DATA, [[sample] for sample in samples])
    write_store(out / artifacts.EVAL_DATA, [[sample] for sample in rows or samples[:5]])
    return out


def _generating(method: MethodConfig = LORA, *, rows: int = 4, **train: Any) -> TrainStep:
    config = EvalConfig(max_new_tokens=12, batch_size=3)
    return replace(train_step(method, eval_steps=3, generate_rows=rows, **train), eval=config)


@pytest.mark.parametrize("average", [None, 0.9])
def test_answers_to_held_out_rows_are_scored_while_training_and_change_no_bit(
    tmp_path: Path, average: float | None
) -> None:
    out, plain = _with_held_out(tmp_path / "out"), _with_held_out(tmp_path / "plain")
    # So that it learns the held-out rows, which are among those it is trained on.
    longer = {"epochs": 20.0, "learning_rate": 5e-3, "ema_decay": average}
    step = _generating(FULL, checkpoint_steps=60, **longer)
    assert run(step, out)[0].sha256 == run(train_step(FULL, **longer), plain)[0].sha256
    measured = [line for line in metrics(out) if "eval_loss" in line]
    assert [line["step"] for line in measured] == list(range(3, 61, 3))
    assert measured[-1]["eval_rouge1"] > measured[0]["eval_rouge1"] + 20
    network = held.load_model(
        out / artifacts.MERGED, dtype=None, device="cpu", attention="sdpa", trust_remote_code=False
    ).float()
    like = ask.read_questions(out / "base", (), chat=False, chat_template=None)
    questions, wanted = references.questions(TokenStore.open(out / artifacts.EVAL_DATA), like, count=4)
    given = ask.answer(network, questions, max_new_tokens=12, batch_size=3)
    scores = text_metrics.measure([item["answer"] for item in given], wanted)
    assert {name: measured[-1][f"eval_{name}"] for name in scores} == scores


def test_held_out_rows_without_an_answer_are_refused(tmp_path: Path) -> None:
    out = _with_held_out(tmp_path, rows=[([5, 6], [1, 1])])
    with pytest.raises(UserError, match=r"train.generate_rows: none of the held-out rows has a question and an answer"):
        run(_generating(), out)


def _scored(values: list[float]) -> Any:
    found: Iterator[float] = iter(values)
    return lambda job: {"eval_rougeL": next(found)}


def test_the_weights_with_the_highest_score_are_published_also_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = _generating(best_metric="rougeL", keep_best=True, keep_checkpoints=1, schedule="constant", epochs=4.0)
    best, stopped, short = (_with_held_out(tmp_path / name) for name in ("best", "stopped", "short"))
    monkeypatch.setattr(loop, "scores", _scored([1.0, 7.0, 3.0, 2.0]))
    made = run(step, best)[0]
    assert "publishing the weights of step 6, with the highest rougeL: 7.0000" in capsys.readouterr().out
    monkeypatch.setattr(loop, "scores", _scored([1.0, 7.0, 3.0, 2.0]))
    with kill_before(7), pytest.raises(Killed):
        run(step, stopped)
    monkeypatch.setattr(loop, "scores", _scored([3.0, 2.0]))
    assert run(step, stopped)[0] == made
    assert losses(stopped) == losses(best)
    plain = replace(step.train, keep_best=False, eval_steps=None, generate_rows=0, max_steps=6)
    assert run(replace(step, train=plain), short)[0].sha256 == made.sha256


def test_training_ends_when_the_score_no_longer_rises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = _with_held_out(tmp_path)
    monkeypatch.setattr(loop, "scores", _scored([5.0, 6.0, 5.9, 6.0]))
    run(_generating(best_metric="rougeL", early_stopping_evals=2, epochs=8.0), out)
    assert losses(out)[-1][0] == 12
