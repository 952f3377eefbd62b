from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import CHATML, random_samples, write_store
from tests.train.objective_runs import OBJECTIVES, make_objective_run, objective_step, random_pairs, write_pairs
from tests.train.runs import FULL, LORA, make_run, train_step
from tunerun import artifacts
from tunerun.config.schema import EvalConfig, MethodConfig, ModelConfig
from tunerun.errors import UserError
from tunerun.evaluate.preference import Preference, compare
from tunerun.evaluate.stage import run
from tunerun.models.score import Answers
from tunerun.plan.placement import Placement
from tunerun.plan.steps import EvalStep
from tunerun.train import stage as train_stage

PROMPTS = ("Who are you?", "你好", "one plus one")


def _step(**values: Any) -> EvalStep:
    defaults: dict[str, Any] = {
        "model": ModelConfig(path="org/tiny"),
        "eval": EvalConfig(prompts=PROMPTS, max_new_tokens=5, batch_size=2),
        "adapter": None,
        "tuned": None,
        "chat": True,
        "placement": Placement(threads=1),
        "seed": 1,
    }
    return EvalStep(**{**defaults, **values})


def _report(step: EvalStep, out: Path) -> dict[str, Any]:
    assert [item.path for item in run(step, out)] == ["eval/report.json"]
    report: dict[str, Any] = json.loads((out / "eval" / "report.json").read_text())
    assert report["schema"] == 1
    return report


def test_a_base_model_alone_is_measured_on_its_training_rows_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = _report(_step(), make_run(tmp_path))
    assert list(report["models"]) == ["base"]
    assert report["split"] == "train"
    assert "no rows were held out" in capsys.readouterr().out
    answers = report["models"]["base"]["answers"]
    assert [answer["prompt"] for answer in answers] == list(PROMPTS)
    assert all(answer["tokens"] <= 5 for answer in answers)


@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_a_base_without_rows_for_new_tokens_is_measured_all_the_same(tmp_path: Path, method: MethodConfig) -> None:
    out = make_run(tmp_path, base={"vocab_size": 310, "pad_token_id": 0, "eos_token_id": 1})
    model = ModelConfig(path="org/tiny", resize_embeddings=True)
    train_stage.run(train_step(method, model=model), out)
    made: dict[str, Any] = {"tuned": artifacts.MERGED} if method is FULL else {"adapter": artifacts.ADAPTER}
    models = _report(_step(model=model, **made), out)["models"]
    assert models["tuned"]["loss"] < models["base"]["loss"]


def test_an_adapter_is_measured_beside_its_base_on_held_out_rows(tmp_path: Path) -> None:
    out = make_run(tmp_path)
    write_store(out / artifacts.EVAL_DATA, [[sample] for sample in random_samples(20)])
    train_stage.run(train_step(epochs=8.0), out)
    report = _report(_step(adapter=artifacts.ADAPTER), out)
    assert (report["split"], report["rows"]) == ("eval", 20)
    assert report["models"]["tuned"]["loss"] < report["models"]["base"]["loss"] - 1.0
    alone = _report(_step(), out)
    assert alone["models"]["base"] == report["models"]["base"]


def test_a_fully_trained_model_is_measured_beside_its_base(tmp_path: Path) -> None:
    out = make_run(tmp_path)
    train_stage.run(train_step(FULL, epochs=8.0), out)
    models = _report(_step(tuned=artifacts.MERGED), out)["models"]
    assert models["tuned"]["loss"] < models["base"]["loss"] - 1.0


def test_without_chat_prompts_are_continued_as_they_are(tmp_path: Path) -> None:
    out = make_run(tmp_path)
    chat, plain = (_report(_step(chat=chat), out)["models"]["base"]["answers"] for chat in (True, False))
    assert chat != plain


def test_chat_without_a_template_is_refused_and_a_named_one_used(tmp_path: Path) -> None:
    out = make_run(tmp_path)
    config = json.loads((out / "base" / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (out / "base" / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"model.chat_template: the model has no chat template"):
        run(_step(), out)
    (out / "mine.jinja").write_text(CHATML)
    assert _report(_step(model=ModelConfig(path="org/tiny", chat_template=str(out / "mine.jinja"))), out)


def test_answers_to_held_out_rows_are_compared_with_the_rows_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = make_run(tmp_path)
    samples = random_samples(20, longest=12)
    write_store(out / artifacts.DATA, [[sample] for sample in samples])
    write_store(out / artifacts.EVAL_DATA, [samples[:3], [samples[3]], [([5, 6], [0, 0])]], packed=True)
    train_stage.run(train_step(FULL, epochs=40.0), out)
    step = _step(tuned=artifacts.MERGED, eval=EvalConfig(generate_rows=10, max_new_tokens=8))
    run(step, out)
    report = json.loads((out / "eval" / "report.json").read_text())
    assert report["generated_rows"] == 4
    base, tuned = (report["models"][name]["text"] for name in ("base", "tuned"))
    assert set(base) == {"bleu4", "rouge1", "rouge2", "rougeL"}
    assert tuned["rouge1"] > base["rouge1"] + 20
    lines = [json.loads(line) for line in (out / "eval" / "generated.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"prompt", "reference", "base", "tuned"}] * 4
    assert "BLEU-4" in capsys.readouterr().out


def test_the_last_answer_of_a_row_is_asked_for_with_all_that_comes_before(tmp_path: Path) -> None:
    from tunerun.formats.tokens import TokenStore
    from tunerun.models import ask
    from tunerun.models import references as row_references

    out = make_run(tmp_path)
    like = ask.read_questions(out / "base", (), chat=False, chat_template=None)
    rows = [[([1, 2, 3, 4, 5, 6], [0, 1, 1, 0, 1, 1])], [([7, 8], [1, 1])], [([9, 10, 11], [0, 1, 0])]]
    store = TokenStore.open(write_store(tmp_path / "store", rows))
    questions, references = row_references.questions(store, like, count=5)
    assert questions.token_ids == ((1, 2, 3, 4), (9,))
    assert references == [like.tokenizer.backend.decode(ids) for ids in ([5, 6], [10])]
    assert len(row_references.questions(store, like, count=1)[1]) == 1


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_better_answers_are_compared_with_worse_ones(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = make_objective_run(tmp_path, OBJECTIVES[name], rows=8, held_out=6)
    if name == "dpo":
        # What was trained on: random answers say nothing of others.
        write_pairs(out / artifacts.EVAL_DATA, random_pairs(8))
    train_stage.run(objective_step(OBJECTIVES[name], FULL, epochs=8.0, learning_rate=3e-3), out)
    report = _report(_step(tuned=artifacts.MERGED), out)
    base, tuned = (report["models"][model]["preference"] for model in ("base", "tuned"))
    assert base["reward_margin"] is None
    assert tuned["margin"] - base["margin"] != 0
    if name == "dpo":
        assert tuned["reward_accuracy"] == 1.0
        assert tuned["reward_margin"] > 1.0
        assert tuned["margin"] > base["margin"]
    else:
        assert tuned["accuracy"] is None
    assert "accuracy    margin" in capsys.readouterr().out


def test_a_preference_is_the_share_and_the_mean_of_differences() -> None:
    now = Preference(
        better=Answers(np.array([-2.0, -9.0]), np.array([1, 3])),
        worse=Answers(np.array([-4.0, -4.0]), np.array([1, 2])),
        paired=True,
    )
    assert compare(now, None) == {"accuracy": 0.5, "margin": 0.5, "reward_accuracy": None, "reward_margin": None}
    before = Preference(
        better=Answers(np.array([-3.0, -7.0]), np.array([1, 3])),
        worse=Answers(np.array([-4.0, -1.0]), np.array([1, 2])),
        paired=True,
    )
    found = compare(now, before)
    assert (found["reward_accuracy"], found["reward_margin"]) == (1.0, 1.0)
