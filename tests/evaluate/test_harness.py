"""Tasks of the LM Evaluation Harness, from files: no hub can be reached from tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.runs import make_run, train_step
from tunerun import artifacts
from tunerun.config.schema import EvalConfig, ModelConfig
from tunerun.errors import StageError, UserError
from tunerun.evaluate.stage import run
from tunerun.plan.placement import Placement
from tunerun.plan.steps import EvalStep
from tunerun.train import stage as train_stage

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install -c constraints.txt lm-eval")

DOCS = [
    {"question": f"Who is number {number}?", "choices": [" it", " two", " the fox"], "answer": number % 3}
    for number in range(9)
]
CHOICE = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 2.0
"""
TEXT = """\
task: spoken
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 6
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture(autouse=True)
def _own_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def write_task(folder: Path, text: str = CHOICE, name: str = "colours") -> str:
    folder.mkdir(exist_ok=True)
    data = folder / "docs.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS), encoding="utf-8")
    (folder / f"{name}.yaml").write_text(text.format(name=name, data=data), encoding="utf-8")
    return str(folder / f"{name}.yaml")


def step(**options: Any) -> EvalStep:
    fields: dict[str, Any] = {"adapter": None, "tuned": None, "model": ModelConfig(path="org/tiny"), **options}
    evaluation = EvalConfig(**fields.pop("eval"))
    return EvalStep(eval=evaluation, chat=True, placement=Placement(), seed=0, **fields)


def report(made: EvalStep, out: Path) -> dict[str, Any]:
    run(made, out)
    found: dict[str, Any] = json.loads((out / "eval" / "report.json").read_text())
    return found["models"]


def chosen(folder: Path) -> float:
    """The share of questions whose right choice is the most likely one, computed by hand."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    right = 0
    for doc in DOCS:
        scores = []
        for choice in doc["choices"]:
            context = tokenizer(doc["question"], add_special_tokens=False).input_ids
            whole = tokenizer(doc["question"] + choice, add_special_tokens=False).input_ids
            with torch.inference_mode():
                logs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            scores.append(sum(float(logs[at - 1, whole[at]]) for at in range(len(context), len(whole))))
        right += scores.index(max(scores)) == doc["answer"]
    return right / len(DOCS)


def test_a_task_is_run_on_base_and_tuned_and_agrees_with_a_count_by_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = make_run(tmp_path)
    train_stage.run(train_step(epochs=8.0), out)
    tasks = (write_task(tmp_path / "tasks"), write_task(tmp_path / "tasks", TEXT, "spoken"))
    models = report(step(eval={"lm_eval": tasks}, adapter=artifacts.ADAPTER), out)
    for name in ("base", "tuned"):
        assert set(models[name]["tasks"]) == {"colours", "spoken"}
        found = models[name]["tasks"]["colours"]
        assert (found["samples"], found["version"]) == (9, 2.0)
        (metric,) = found["metrics"]
        assert (metric["name"], metric["filter"], metric["higher_is_better"]) == ("acc", "none", True)
        assert 0 < metric["stderr"] < 0.2
    assert models["base"]["tasks"]["colours"]["metrics"][0]["value"] == pytest.approx(chosen(out / "base"))
    assert "colours" in capsys.readouterr().out
    alone = report(step(eval={"lm_eval": tasks}), out)
    assert alone["base"]["tasks"] == models["base"]["tasks"], "tasks that were run before give the same again"


def test_names_from_a_folder_limits_and_examples_are_taken(tmp_path: Path) -> None:
    out = make_run(tmp_path)
    folder = str(Path(write_task(tmp_path / "tasks")).parent)
    given = {"lm_eval": ("colours",), "lm_eval_tasks_dir": folder, "lm_eval_limit": 4, "lm_eval_fewshot": 2}
    few = report(step(eval=given), out)
    assert few["base"]["tasks"]["colours"]["samples"] == 4


def test_questions_go_through_the_chat_template_when_asked_to(tmp_path: Path) -> None:
    out = make_run(tmp_path)
    path = write_task(tmp_path / "tasks", TEXT, "spoken")
    evaluation = {"lm_eval": (path,), "lm_eval_chat": True}
    assert report(step(eval=evaluation), out)["base"]["tasks"]["spoken"]["samples"] == 9
    config = json.loads((out / "base" / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (out / "base" / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="the model has no chat template"):
        report(step(eval=evaluation), out)


def test_data_that_cannot_be_had_are_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    out = make_run(tmp_path)
    path = write_task(tmp_path / "tasks")
    (tmp_path / "tasks" / "docs.jsonl").unlink()
    with pytest.raises(
        StageError, match=r"eval\.lm_eval: the data of .*colours\.yaml cannot be fetched: .*docs\.jsonl"
    ):
        report(step(eval={"lm_eval": (path,)}), out)
    assert not (out / "eval").exists()
