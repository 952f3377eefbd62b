"""`tunerun replay`: a run comes to the same again, or what differs is named."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import yaml

from tests.run import scenario
from tunerun import artifacts, cli, fits
from tunerun.errors import ExitCode, UserError
from tunerun.launch.nodes import Leader, Meeting
from tunerun.plan.step_keys import fingerprint_keys
from tunerun.run import runner


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    """A run of stand-in stages that is done."""
    scenario.use_stand_ins(monkeypatch.setattr)
    monkeypatch.chdir(tmp_path)
    scenario.fill(tmp_path)
    wanted = ["model.path=model", "data.path=rows.txt", "method=lora", "stages=[data,train]", "run_dir=first"]
    assert cli.dispatch(wanted) == ExitCode.DONE
    return tmp_path / "first"


def test_a_run_is_made_again_in_a_new_directory_and_is_identical(run_dir, capfd):
    assert cli.dispatch(["replay", "first", "run_dir=second"]) == ExitCode.DONE
    lines = capfd.readouterr().out.splitlines()
    assert "identical: metrics and artifacts of second are those of first" in lines
    assert lines[-1] == f"run: {run_dir.parent / 'second'}"
    first, second = (
        (run_dir.parent / name / "adapter/weights.txt").read_text(encoding="utf-8") for name in ("first", "second")
    )
    assert first == second


def test_data_that_changed_are_named_and_make_the_replay_differ(run_dir, capfd):
    Path("rows.txt").write_text("other rows")
    assert cli.dispatch(["replay", "first", "run_dir=second"]) == ExitCode.GATE_FAILED
    out = capfd.readouterr().out
    assert "not as recorded" in out
    assert "not identical" in out
    assert "adapter" in out.partition("not identical")[2]


def test_another_base_model_is_named_before_the_replay_runs_and_in_its_verdict(run_dir, capfd):
    Path("model/model.safetensors").write_text("other weights")
    assert cli.dispatch(["replay", "first", "run_dir=second"]) == ExitCode.GATE_FAILED
    out = capfd.readouterr().out
    before, _, verdict = out.partition("not identical")
    assert row_of("base model", before.partition("[1/3]")[0]).startswith("sha256 ")
    assert row_of("base model", verdict).startswith("sha256 ")


@pytest.mark.parametrize("key", ["model.adapter", "model.chat_template"])
def test_what_is_laid_over_the_base_model_is_named_when_it_is_another(run_dir, key, capfd):
    given = {"model.adapter": "given/adapter_config.json", "model.chat_template": "chat.jinja"}
    for file in map(Path, given.values()):
        file.parent.mkdir(exist_ok=True)
        file.write_text("{}")
    wanted = ["model.adapter=given", "model.chat_template=chat.jinja", "method=lora", "stages=[data,train]"]
    assert cli.dispatch(["model.path=model", "data.path=rows.txt", *wanted, "run_dir=third"]) == ExitCode.DONE
    capfd.readouterr()
    assert cli.dispatch(["replay", "third", "run_dir=fourth"]) == ExitCode.DONE
    assert (
        capfd.readouterr().out.splitlines()[0]
        == "replay of third: code, packages, machine, models and data are as recorded"
    )
    Path(given[key]).write_text('{"other": true}')
    cli.dispatch(["replay", "third", "run_dir=fifth"])
    heading = capfd.readouterr().out.partition("[1/3]")[0]
    assert row_of("base model", heading).startswith(key)


def row_of(section: str, table: str) -> str:
    """Returns the first row of a section."""
    lines = [line.strip() for line in table.splitlines()]
    return lines[lines.index(section) + 1]


def test_what_deepspeed_was_told_is_named_when_it_is_told_something_else(run_dir, capfd):
    plan = json.loads((run_dir / artifacts.PLAN).read_text(encoding="utf-8"))
    (train,) = (step for step in plan["steps"] if step["stage"] == "train")
    train["deepspeed"] = {"zero_optimization": {"reduce_bucket_size": 1000}}
    artifacts.write_json(run_dir / artifacts.PLAN, plan)
    cli.dispatch(["replay", "first", "run_dir=second"])
    before = capfd.readouterr().out.partition("[1/3]")[0]
    assert row_of("environment", before).startswith("deepspeed.zero_optimization")


@pytest.mark.parametrize("target", ["first", "second"])
def test_a_directory_that_holds_a_run_would_be_compared_with_itself_and_is_refused(run_dir, target):
    cli.dispatch(["replay", "first", "run_dir=second"])
    with pytest.raises(UserError, match="holds a run already"):
        cli.dispatch(["replay", "first", f"run_dir={target}"])


def test_a_variable_that_the_config_names_as_secret_is_as_recorded(run_dir, monkeypatch, capfd):
    monkeypatch.setenv("MY_DOOR", "opens-the-endpoint-9183")
    wanted = ["model.path=model", "data.path=rows.txt", "method=lora", "stages=[data,train]"]
    assert cli.dispatch([*wanted, "serve.api_key_env=MY_DOOR", "run_dir=third"]) == ExitCode.DONE
    capfd.readouterr()
    assert cli.dispatch(["replay", "third", "run_dir=fourth"]) == ExitCode.DONE
    assert "MY_DOOR" not in capfd.readouterr().out


def test_a_run_that_failed_is_not_replayed(run_dir):
    record = json.loads((run_dir / artifacts.RECORD).read_text(encoding="utf-8"))
    (run_dir / artifacts.RECORD).write_text(json.dumps({**record, "status": "failed"}), encoding="utf-8")
    with pytest.raises(UserError, match="did not run to its end"):
        cli.dispatch(["replay", "first"])


def test_the_replay_computes_as_much_at_a_time_as_the_run_did(run_dir, monkeypatch):
    sizes = {"activation_checkpointing": False, "eval_batch_size": 8}
    found = tuple(fits.Fit(step=step, micro_batch_size=size, **sizes) for step, size in ((0, 2), (7, 1)))
    fits.write(run_dir, "key", found)
    plans = []

    def execute(plan, **_):
        plans.append(plan)
        return ExitCode.PREEMPTED

    monkeypatch.setattr(runner, "execute", execute)
    assert cli.dispatch(["replay", "first", "run_dir=second"]) == ExitCode.PREEMPTED
    assert plans[0].train.fits == found
    assert "fits" not in "".join(fingerprint_keys(plans[0].train))


def test_the_replay_takes_the_commits_and_the_choices_of_the_run(run_dir, monkeypatch):
    plan = json.loads((run_dir / artifacts.PLAN).read_text(encoding="utf-8"))
    (train,) = (step for step in plan["steps"] if step["stage"] == "train")
    train["micro_batch_size"] = 3
    (run_dir / artifacts.PLAN).write_text(json.dumps(plan), encoding="utf-8")
    config = (run_dir / artifacts.CONFIG).read_text(encoding="utf-8")
    assert str(run_dir.parent / "rows.txt") in config
    hub = config.replace(str(run_dir.parent / "rows.txt"), "owner/set:small:train")
    (run_dir / artifacts.CONFIG).write_text(hub, encoding="utf-8")
    sources = [{"file": "owner/set:small:train", "revision": "a" * 40, "rows": 1}]
    report = {"schema": artifacts.DATA_SCHEMA, "sources": sources}
    artifacts.write_json(run_dir / artifacts.DATA / "report.json", report)
    executed = []

    def execute(plan, *, config, **_):
        executed.append((plan, config))
        return ExitCode.PREEMPTED

    monkeypatch.setattr(runner, "execute", execute)
    assert cli.dispatch(["replay", "first", "run_dir=second"]) == ExitCode.PREEMPTED
    ((plan, config),) = executed
    assert plan.train.micro_batch_size == 3
    assert not config.data.cache
    assert config.data.path == (f"owner/set@{'a' * 40}:small:train",)


def test_a_node_that_does_not_lead_follows_the_replay_of_the_one_that_does(run_dir, monkeypatch, capfd):
    config = yaml.safe_load((run_dir / artifacts.CONFIG).read_text(encoding="utf-8"))
    config["cluster"] |= {"kind": "slurm", "nodes": 2}
    config["hardware"] |= {"strategy": "ddp", "processes": 1, "device": "cpu"}
    (run_dir / artifacts.CONFIG).write_text(yaml.safe_dump(config), encoding="utf-8")
    env = {"JOB_ID": "4321", "PROCID": "1", "NODEID": "1", "STEP_NUM_NODES": "2", "STEP_NUM_TASKS": "2",
           "STEP_NODELIST": "127.0.0.1"}  # fmt: skip
    for name, value in env.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    leader = Leader(Meeting(host="127.0.0.1", port=20000 + 2 * 4321, nodes=2, is_leader=True), "/runs/one")
    ending = threading.Thread(target=leader.end, args=(ExitCode.DONE,))
    ending.start()
    # The leader has begun its own.
    assert cli.dispatch(["replay", "first", "run_dir=first"]) == ExitCode.DONE
    ending.join()
    assert "node 1 of 2; the run is in /runs/one" in capfd.readouterr().out
