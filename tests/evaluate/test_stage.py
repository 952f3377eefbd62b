from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import CHATML, random_samples, write_store
from tests.train.runs import FULL, LORA, make_run, train_step
from tunerun import artifacts
from tunerun.config.schema import EvalConfig, MethodConfig, ModelConfig
from tunerun.errors import UserError
from tunerun.evaluate.stage import run
from tunerun.plan.steps import EvalStep, Placement
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
