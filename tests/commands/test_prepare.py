"""What is typed becomes a config that another folder can resume."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.run import scenario
from tunerun.commands.prepare import prepare
from tunerun.config.resolve import resolve
from tunerun.errors import UserError
from tunerun.formats.trained_base import write_quantisation
from tunerun.plan.steps import MergeStep, Quantisation

TYPED = ("model.path=model", "data.path=rows.txt", "method=lora", "stages=[data,train]", "run_dir=run")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scenario.fill(tmp_path)
    return tmp_path


def prepared(*overrides):
    return prepare(resolve([*TYPED, *overrides], None)).config


def test_the_interpreter_of_an_environment_is_found_from_anywhere_by_its_own_name(folder):
    program = folder / "venv/bin/python"
    program.parent.mkdir(parents=True)
    program.symlink_to(sys.executable)
    assert prepared("env.export.python=venv/bin/python").env.export.python == str(program)
    assert prepared("env.export.python=./venv/bin/python").env.export.python == str(program)
    (folder / "python3").touch()
    assert prepared("env.export.python=python3").env.export.python == "python3"


def test_an_accelerate_config_takes_the_stage_from_the_deepspeed_config_beside_it(folder):
    (folder / "settings").mkdir()
    (folder / "settings/zero.json").write_text('{"zero_optimization": {"stage": 3}, "bf16": {"enabled": "auto"}}')
    (folder / "settings/accelerate.yaml").write_text(
        "distributed_type: DEEPSPEED\nnum_processes: 2\nuse_cpu: true\n"
        "deepspeed_config: {deepspeed_config_file: zero.json}\n"
    )
    hardware = prepared("hardware.accelerate=settings/accelerate.yaml").hardware
    assert (hardware.strategy, hardware.deepspeed) == ("zero3", str(folder / "settings/zero.json"))
    typed = prepared("hardware.accelerate=settings/accelerate.yaml", "hardware.deepspeed=settings/zero.json")
    assert typed.hardware == hardware
    (folder / "other.json").write_text('{"zero_optimization": {"stage": 3}}')
    told = rf"hardware\.deepspeed: is {folder}/other\.json, and {folder}/settings/accelerate\.yaml names .*/zero\.json"
    with pytest.raises(UserError, match=told):
        prepared("hardware.accelerate=settings/accelerate.yaml", "hardware.deepspeed=other.json")
    (folder / "settings/zero.json").unlink()
    with pytest.raises(UserError, match=r"hardware\.accelerate: .*settings/zero\.json cannot be read"):
        prepared("hardware.accelerate=settings/accelerate.yaml")


def test_a_deepspeed_config_of_ones_own_goes_with_an_accelerate_config_that_names_none(folder):
    (folder / "zero.json").write_text('{"zero_optimization": {"reduce_bucket_size": 1000}}')
    (folder / "accelerate.yaml").write_text(
        "distributed_type: DEEPSPEED\nnum_processes: 2\nuse_cpu: true\ndeepspeed_config: {zero_stage: 2}\n"
    )
    typed = ("hardware.accelerate=accelerate.yaml", "hardware.deepspeed=zero.json")
    assert prepared(*typed).hardware.deepspeed == str(folder / "zero.json")
    (folder / "accelerate.yaml").write_text("distributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n")
    with pytest.raises(UserError, match=r"hardware\.deepspeed: ddp does not run under DeepSpeed"):
        prepared(*typed)


def test_an_accelerate_config_for_two_machines_needs_a_cluster_of_two(folder):
    (folder / "accelerate.yaml").write_text(
        "distributed_type: MULTI_CPU\nnum_machines: 2\nnum_processes: 4\nuse_cpu: true\n"
    )
    with pytest.raises(UserError, match=r"cluster\.kind: local is this machine, and 2 are asked for"):
        prepared("hardware.accelerate=accelerate.yaml")
    meets = "cluster.rendezvous=127.0.0.1:29400"
    config = prepared("hardware.accelerate=accelerate.yaml", "cluster=multi_node", meets)
    assert (config.hardware.strategy, config.hardware.processes, config.cluster.nodes) == ("ddp", 2, 2)
    with pytest.raises(UserError, match=r"cluster\.rendezvous: null is no place where nodes can meet"):
        prepared("hardware.accelerate=accelerate.yaml", "cluster=multi_node")
    text = (folder / "accelerate.yaml").read_text()
    (folder / "accelerate.yaml").write_text(f"{text}main_process_ip: 127.0.0.1\nmain_process_port: 29400\n")
    assert prepared("hardware.accelerate=accelerate.yaml", "cluster=multi_node") == config
    with pytest.raises(UserError, match=r"accelerate: hardware\.processes is set too"):
        prepared("hardware.accelerate=accelerate.yaml", "hardware.processes=2")


def test_what_is_not_read_of_an_accelerate_config_is_a_note_of_the_plan(folder):
    (folder / "accelerate.yaml").write_text(
        "distributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\ndynamo_config: {dynamo_backend: INDUCTOR}\n"
    )
    plan = prepare(resolve([*TYPED, "hardware.accelerate=accelerate.yaml"], None)).plan
    assert "of the accelerate config these are not read: dynamo_config" in plan.notes


def test_a_deepspeed_config_is_not_read_where_one_process_has_nothing_to_share(folder):
    (folder / "zero.json").write_text('{"zero_optimization": {"stage": 2}, "bf16": {"enabled": true}}')
    typed = ("hardware.strategy=zero2", "hardware.deepspeed=zero.json", "hardware.device=cpu")
    plan = prepare(resolve([*TYPED, *typed], None)).plan
    assert (plan.train.placement.strategy, plan.train.deepspeed) == ("single", {})
    told = "one process has nothing to share: zero2 is trained as single, and hardware.deepspeed is not read"
    assert told in plan.notes
    with pytest.raises(UserError, match=r"bf16\.enabled is True"):
        prepared(*typed, "hardware.processes=2")


def test_a_deepspeed_config_whose_sections_are_none_is_told_as_such(folder):
    (folder / "zero.json").write_text('{"zero_optimization": 2, "bf16": true}')
    with pytest.raises(UserError) as caught:
        prepared("hardware.strategy=zero2", "hardware.processes=2", "hardware.deepspeed=zero.json")
    assert [problem.what for problem in caught.value.problems] == [
        "zero_optimization is 2, and has to be a mapping.",
        "bf16 is True, and has to be a mapping.",
    ]


def test_an_adapter_is_found_within_a_run_and_within_its_checkpoints(folder):
    adapter = folder / "first/checkpoints/step-4/adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").touch()
    for named in ("first/checkpoints/step-4", "first/checkpoints/step-4/adapter"):
        assert prepared(f"model.adapter={named}").model.adapter == str(adapter)
    missing = prepare(resolve([*TYPED, "model.adapter=first/checkpoints"], None))
    assert [problem.where for problem in missing.obstacles] == ["model.adapter"]


def test_a_whole_model_is_found_within_a_run_and_within_its_checkpoints(folder):
    for inner in ("first/checkpoints/step-4/model", "first/merged"):
        (folder / inner).mkdir(parents=True)
        (folder / inner / "config.json").write_text('{"architectures": ["OtherForCausalLM"]}')
        for named in (inner, str(Path(inner).parent)):
            assert prepared(f"model.path={named}").model.path == str(folder / inner)


def test_eval_without_rows_is_refused_before_anything_runs(folder):
    typed = [word for word in TYPED if not word.startswith("stages")]
    refused = prepare(resolve([*typed, "stages=[eval]"], None))
    assert [problem.what for problem in refused.obstacles if problem.where == "stages"] == [
        f"eval measures rows that the data stage prepares, and {refused.config.run_dir} has none."
    ]
    (Path(refused.config.run_dir) / "data").mkdir(parents=True)
    again = prepare(resolve([*typed, "stages=[eval]", f"run_dir={refused.config.run_dir}"], None))
    assert not [problem for problem in again.obstacles if problem.where == "stages"]


def test_an_adapter_is_merged_into_the_base_that_it_was_trained_on(folder):
    (folder / "made").mkdir()
    (folder / "made/adapter_config.json").touch()
    delivering = ("model.path=model", "model.adapter=made", "stages=[merge]", "run_dir=run")
    assert prepare(resolve([*delivering], None)).config.method.kind == "lora"
    with pytest.raises(UserError, match=r"export\.merge_base: only the base of qlora is quantised"):
        prepare(resolve([*delivering, "export.merge_base=dequantised"], None))
    write_quantisation(folder / "made", Quantisation(bits=8, double=False))
    for wanted, expected in ((), Quantisation(bits=8, double=False)), (("export.merge_base=full_precision",), None):
        merge = next(
            step for step in prepare(resolve([*delivering, *wanted], None)).plan.steps if isinstance(step, MergeStep)
        )
        assert merge.quantisation == expected
