"""`tunerun lock`: a recipe that composes to the run, and refuses other data, models and packages."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.run import scenario
from tunerun import artifacts, cli, fits
from tunerun.base_model import BaseModel, write_teacher
from tunerun.commands.lock import locked
from tunerun.commands.prepare import prepare
from tunerun.config.resolve import resolve
from tunerun.config.schema import RunConfig
from tunerun.errors import ExitCode, Problem, UserError
from tunerun.plan import deepspeed
from tunerun.plan import plan as plans
from tunerun.run import record, results

WANTED = ("method=lora", "stages=[data,train]", "run_dir=first", "model.chat_template=chat.jinja")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A user's folder with a run of stand-in stages that is done."""
    scenario.use_stand_ins(monkeypatch.setattr)
    project = tmp_path / "project"
    scenario.fill(project)
    monkeypatch.chdir(project)
    (project / "chat.jinja").write_text("{{ messages }}")
    assert cli.dispatch(["model.path=model", "data.path=rows.txt", *WANTED]) == ExitCode.DONE
    return project


def test_the_recipe_names_what_lies_in_the_folder_without_it(project, capfd):
    assert cli.dispatch(["lock", "first", "mine"]) == ExitCode.DONE
    assert str(project) not in Path("recipes/mine.yaml").read_text(encoding="utf-8")
    config = resolve(["+recipe=mine"]).config
    assert config.model.path == "./model"
    assert config.model.chat_template == "./chat.jinja"
    assert config.data.path == ("./rows.txt",)
    assert list(config.lock.data_sha256) == ["./rows.txt"]
    assert list(config.lock.files_sha256) == ["./chat.jinja"]
    assert {"torch", "tokenizers", "tunerun"} & set(config.lock.packages)
    assert not {"wandb", "tensorboard", "huggingface-hub"} & set(config.lock.packages)
    assert "outside this folder" not in capfd.readouterr().out


def test_what_fitted_into_memory_is_pinned(project):
    sizes = {"step": 7, "eval_batch_size": 8}
    found = [fits.Fit(micro_batch_size=2, activation_checkpointing=False, **sizes)]
    for twice, wanted in ((False, None), (True, True)):
        found.append(fits.Fit(micro_batch_size=1, activation_checkpointing=twice, **sizes))
        fits.write(project / "first", "key", found)
        train = locked(results.read(project / "first")).train
        assert (train.micro_batch_size, train.activation_checkpointing) == (1, wanted)


def test_the_locked_recipe_refuses_other_data(project):
    cli.dispatch(["lock", "first", "mine"])
    assert not held("mine")
    Path("rows.txt").write_text("changed")
    (found,) = held("mine")
    assert found.where == "lock.data_sha256"


@pytest.mark.parametrize("changed", ["chat.jinja", "given/weights"])
def test_the_locked_recipe_refuses_another_adapter_and_another_chat_template(project, changed):
    (project / "given").mkdir()
    (project / "given" / artifacts.ADAPTER_CONFIG).write_text("{}")
    (project / "given/weights").write_text("trained before")
    given = ["model.path=model", "model.adapter=given", "data.path=rows.txt", *WANTED[:2], WANTED[3]]
    assert cli.dispatch([*given, "run_dir=second"]) == ExitCode.DONE
    cli.dispatch(["lock", "second", "mine"])
    assert not held("mine")
    (project / changed).write_text("another")
    (found,) = held("mine")
    assert found.where == "lock.files_sha256"
    assert f"/{changed.partition('/')[0]} is not what it was" in found.what
    assert "~lock.files_sha256" in found.fix


def held(recipe: str) -> list[Problem]:
    """Returns what a lock finds to be another."""
    return [item for item in prepare(resolve([f"+recipe={recipe}"])).obstacles if item.where.startswith("lock")]


def test_tasks_of_the_evaluation_are_pinned_and_named_from_the_folder(project):
    (project / "task.yaml").write_text("task: mine")
    wanted = ["model.path=model", "data.path=rows.txt", *WANTED[:2], "eval.lm_eval=[task.yaml,gsm8k]"]
    assert cli.dispatch([*wanted, "run_dir=second"]) == ExitCode.DONE
    kept = record.read(project / "second")
    # As the eval stage would have it.
    files = {f"eval.lm_eval {project / 'task.yaml'}": artifacts.sha256(project / "task.yaml")}
    record.write(project / "second", kept.with_stage("eval", dataclasses.replace(kept.stages["data"], files=files)))
    config = locked(results.read(project / "second"))
    assert config.eval.lm_eval == ("./task.yaml", "gsm8k")
    assert config.lock.files_sha256 == {"./task.yaml": artifacts.sha256(project / "task.yaml")}


def test_a_run_of_a_locked_recipe_is_held_to_its_data_from_any_folder(project):
    cli.dispatch(["lock", "first", "mine"])
    config = prepare(resolve(["+recipe=mine"])).config
    assert list(config.lock.data_sha256) == [str(project / "rows.txt")]


def test_a_model_whose_weights_were_not_read_is_not_pinned(project):
    assert resolve_locked("first").lock.model_sha256 is not None
    assert cli.dispatch(["model.path=model", "data.path=rows.txt", "stages=[data]", "run_dir=second"]) == ExitCode.DONE
    assert resolve_locked("second").lock.model_sha256 is None


def resolve_locked(run: str) -> RunConfig:
    cli.dispatch(["lock", run, f"{run}-locked"])
    return resolve([f"+recipe={run}-locked"]).config


def test_what_lies_outside_the_folder_is_named(project, tmp_path, capfd):
    (tmp_path / "elsewhere.txt").write_text("rows")
    (project / "model").rename(tmp_path / "model")
    wanted = ["model.path=../model", "data.path=../elsewhere.txt", *WANTED[:2], "run_dir=second"]
    assert cli.dispatch(wanted) == ExitCode.DONE
    capfd.readouterr()
    cli.dispatch(["lock", "second", "mine"])
    told = capfd.readouterr().out.splitlines()[-1]
    assert told.startswith("outside this folder")
    assert "elsewhere.txt" in told
    assert "model" in told


@pytest.mark.parametrize("counted", ["owner/set:small", "owner/set:small (Sheet 1)"])
def test_data_of_a_hub_are_pinned_to_the_commit_that_was_read(project, counted):
    sources = [{"file": counted, "revision": "a" * 40, "rows": 1}]
    artifacts.write_json(
        project / "first" / artifacts.DATA / "report.json", {"schema": artifacts.DATA_SCHEMA, "sources": sources}
    )
    found = (project / "first" / artifacts.CONFIG).read_text(encoding="utf-8")
    hub = found.replace(str(project / "rows.txt"), "owner/set:small")
    (project / "first" / artifacts.CONFIG).write_text(hub, encoding="utf-8")
    assert locked(results.read(project / "first")).data.path == (f"owner/set@{'a' * 40}:small",)


def test_a_config_of_deepspeed_is_pinned_as_the_run_read_it(project):
    (project / "zero.json").write_text('{"zero_optimization": {"stage": 2, "reduce_bucket_size": 1000}}')
    shares = ["hardware.strategy=zero2", "hardware.deepspeed=zero.json", "hardware.device=cpu"]
    assert cli.dispatch(["model.path=model", "data.path=rows.txt", *WANTED[:2], "run_dir=second", *shares]) == 0
    as_if_of_two_processes(project / "second")
    config = locked(results.read(project / "second"))
    assert config.hardware.deepspeed == "./zero.json"
    assert config.lock.files_sha256 == {"./zero.json": artifacts.sha256(project / "zero.json")}
    cli.dispatch(["lock", "second", "mine"])
    assert not held("mine")
    (project / "zero.json").write_text('{"zero_optimization": {"stage": 2, "reduce_bucket_size": 2000}}')
    assert [problem.where for problem in held("mine")] == ["lock.files_sha256"]
    with pytest.raises(UserError, match=r"zero\.json is not what the run was trained with.*deepspeed\.json"):
        cli.dispatch(["lock", "second", "other"])
    (project / "zero.json").unlink()
    with pytest.raises(UserError, match=r"hardware\.deepspeed: .*zero\.json cannot be read"):
        cli.dispatch(["lock", "second", "other"])


def as_if_of_two_processes(run_dir: Path) -> None:
    """Lets a run's plan be that of a training whose processes share the optimiser by DeepSpeed."""
    plan = plans.from_json(artifacts.read_json(run_dir / artifacts.PLAN))
    placement = dataclasses.replace(plan.train.placement, strategy="zero2", processes=2)
    own = json.loads(Path("zero.json").read_text())
    told = deepspeed.deepspeed_config(placement, max_grad_norm=plan.train.train.max_grad_norm, own=own)
    train = dataclasses.replace(plan.train, placement=placement, deepspeed=told)
    steps = tuple(train if step is plan.train else step for step in plan.steps)
    artifacts.write_json(run_dir / artifacts.PLAN, plans.to_json(dataclasses.replace(plan, steps=steps)))


def test_the_teacher_is_pinned(project):
    given = {"folder": project / "model", "path": "model", "revision": None}
    distilled = project / "first" / artifacts.CONFIG
    assert locked(results.read(project / "first")).lock.teacher_sha256 is None
    write_teacher(project / "first", BaseModel(**given, sha256="7" * 64))
    text = distilled.read_text().replace("kind: sft", "kind: distill")
    distilled.write_text(text.replace("teacher: null", f"teacher: {project}/model"))
    config = resolve_locked("first")
    assert config.objective.teacher == "./model"
    assert config.lock.teacher_sha256 == "7" * 64
    plan = prepare(resolve(["+recipe=first-locked"])).plan
    assert plan.steps[0].teacher_sha256 == "7" * 64


def test_what_a_config_of_accelerate_says_is_in_the_recipe_itself(project):
    (project / "accelerate.yaml").write_text("distributed_type: NO\nuse_cpu: true\nmixed_precision: bf16\n")
    own = ["run_dir=second", "hardware.accelerate=accelerate.yaml"]
    assert cli.dispatch(["model.path=model", "data.path=rows.txt", *WANTED[:2], *own]) == 0
    cli.dispatch(["lock", "second", "mine"])
    (project / "accelerate.yaml").unlink()
    assert not held("mine")
    assert resolve(["+recipe=mine"]).config.hardware.precision == "bf16"


def test_the_folder_of_tasks_is_pinned_and_named_when_it_is_outside(project, tmp_path, capfd):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/mine.yaml").write_text("task: mine")
    wanted = ["model.path=model", "data.path=rows.txt", *WANTED[:2], "run_dir=second"]
    assert cli.dispatch([*wanted, f"eval.lm_eval_tasks_dir={tmp_path}/tasks", "eval.lm_eval=[mine]"]) == 0
    capfd.readouterr()
    cli.dispatch(["lock", "second", "mine"])
    assert f"a clone will not have it: {tmp_path}/tasks" in capfd.readouterr().out.splitlines()[-1]


def test_a_recipe_that_exists_is_not_overwritten(project):
    cli.dispatch(["lock", "first", "mine"])
    with pytest.raises(UserError, match="exists already"):
        cli.dispatch(["lock", "first", "mine"])
