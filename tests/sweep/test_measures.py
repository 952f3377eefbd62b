"""What trials are compared by: which plans lead to each measure, and how it is read."""

from __future__ import annotations

import dataclasses

import pytest

from tests.run import scenario
from tunerun import artifacts
from tunerun.commands.prepare import prepare
from tunerun.config.resolve import resolve
from tunerun.plan.plan import Plan
from tunerun.run import record, results
from tunerun.sweep import measures

HELD_OUT = ("data.eval_rows=1", "train.eval_steps=1")
GGUF = "export.gguf.types=[q4_0]"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scenario.fill(tmp_path)
    return tmp_path


def plan(*arguments: str) -> Plan:
    return prepare(resolve(["model.path=model", "data.path=rows.txt", "method=lora", *arguments])).plan


@pytest.mark.parametrize(
    ("metric", "arguments"),
    [
        ("eval_loss", ["stages=[data,train,eval]"]),
        ("eval_loss", ["stages=[data,train]", *HELD_OUT]),
        ("eval_loss", ["stages=[data,eval]", "model.adapter=given"]),
        ("train_loss", ["stages=[data,train]"]),
        ("tokens_per_second", ["stages=[data,train]"]),
        ("rougeL", ["stages=[data,train,eval]", "eval.generate_rows=2"]),
        ("rougeL", ["stages=[data,train]", *HELD_OUT, "train.generate_rows=2"]),
        ("gguf_bytes", ["stages=[export]", GGUF]),
        ("quantisation_kl", ["stages=[data,train,merge,export,verify]", GGUF]),
    ],
)
def test_a_plan_with_the_stages_of_a_metric_lacks_nothing(metric, arguments, folder):
    assert measures.missing(plan(*arguments), [metric]) == []


@pytest.mark.parametrize(
    ("metric", "arguments", "part"),
    [
        ("eval_loss", ["stages=[data,train]"], "Add eval to the stages, or set train.eval_steps."),
        ("eval_loss", ["stages=[data,eval]"], "of a trained model"),
        ("eval_loss", ["stages=[data,train,eval]", "objective=reward"], "no loss on held-out rows"),
        ("train_loss", ["stages=[data]"], "nothing is trained"),
        ("tokens_per_second", ["stages=[data]"], "nothing is trained"),
        ("rougeL", ["stages=[data,train,eval]"], "Set eval.generate_rows=50"),
        ("bleu4", ["stages=[data,train]", "eval.generate_rows=2"], "Add train and eval"),
        ("gguf_bytes", ["stages=[data,train,merge]", GGUF], "Add export to the stages"),
        ("gguf_bytes", ["stages=[data,train,merge,export]", "export=bnb4"], "set export.gguf.types"),
        ("quantisation_kl", ["stages=[data,train,merge,export]", GGUF], "Add export and verify"),
        ("quantisation_kl", ["stages=[export,verify]", GGUF, "verify.level=off"], "leave verify.level"),
        ("quantisation_kl", ["stages=[export,verify]", "export=bnb4"], "set export.gguf.types"),
    ],
)
def test_a_metric_that_no_stage_leads_to_is_named_with_what_would(metric, arguments, part, folder):
    (problem,) = measures.missing(plan(*arguments), [metric])
    assert problem.where == "sweep.metric"
    assert f"a trial would have no {metric}" in problem.what
    assert part in f"{problem.what} {problem.fix}"


def test_the_size_is_that_of_a_model_and_not_of_its_adapter(folder, monkeypatch):
    scenario.use_stand_ins(monkeypatch.setattr)
    run_dir = folder / "run"
    scenario.execute(run_dir, folder / "rows.txt", folder / "model", stages=scenario.FULL, types=("f16", "q4_0"))
    # As the export stage names and describes it.
    artifacts.write_text(run_dir / "export/small-lora.gguf", "a")
    made = artifacts.describe(run_dir, "gguf_adapter", "export/small-lora.gguf")
    kept = record.read(run_dir)
    export = kept.stages["export"]
    record.write(run_dir, kept.with_stage("export", dataclasses.replace(export, artifacts=(*export.artifacts, made))))
    sizes = [(run_dir / f"export/small-{kind}.gguf").stat().st_size for kind in ("f16", "q4_0")]
    assert measures.measure(results.read(run_dir))["gguf_bytes"] == min(sizes) > made.bytes
