"""A sweep file for wandb names commands that tunerun takes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import yaml

from tests.conftest import ROOT
from tests.run import scenario
from tunerun import cli
from tunerun.commands.prepare import prepare
from tunerun.config.resolve import resolve
from tunerun.errors import ExitCode, UserError
from tunerun.run import rundir

BASE = (
    "model.path=model",
    "data.path=rows.txt",
    "stages=[data,train]",
    "data.eval_rows=1",
    "train.eval_steps=1",
    "train.max_steps=2",
)
SEARCH = (
    "hydra/sweeper=tunerun_optuna",
    "train.learning_rate=tag(log,interval(1e-5,1e-2))",
    "method.rank=range(4,13,4)",
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    scenario.use_stand_ins(monkeypatch.setattr)
    monkeypatch.chdir(tmp_path)
    scenario.fill(tmp_path)
    return tmp_path


def exported(capfd, *arguments: str) -> dict:
    capfd.readouterr()
    assert cli.dispatch(["sweep", "wandb", *BASE, *arguments]) == ExitCode.DONE
    return yaml.safe_load(capfd.readouterr().out)


def agents_command(file: dict, values: dict[str, object]) -> list[str]:
    """What an agent of wandb runs: `${env}` and the interpreter go before, `${args_no_hyphens}` is `key=value ...`."""
    assert file["command"][:2] == ["${env}", "tunerun"]
    assert file["command"][-1] == "${args_no_hyphens}"
    return [*file["command"][2:-1], *(f"{key}={value}" for key, value in values.items())]


def test_a_search_becomes_ranges(folder, capfd):
    file = exported(capfd, *SEARCH, "method=lora,dora", "sweep.trials=9")
    assert file["method"] == "bayes"
    assert file["run_cap"] == 9
    assert file["metric"] == {"name": "train/eval_loss", "goal": "minimize"}
    assert file["parameters"] == {
        "train.learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2},
        "method.rank": {"distribution": "q_uniform", "min": 4, "max": 12, "q": 4},
        "method": {"values": ["lora", "dora"]},
    }


def test_a_pruner_that_the_file_leaves_out_is_told_beside_it(folder, capfd):
    capfd.readouterr()
    assert cli.dispatch(["sweep", "wandb", *BASE, *SEARCH, "hydra.sweeper.pruner=asha"]) == ExitCode.DONE
    out, err = capfd.readouterr()
    assert "early_terminate" not in yaml.safe_load(out)
    assert "hydra.sweeper.pruner=asha is not in the file" in err
    cli.dispatch(["sweep", "wandb", *BASE, *SEARCH])
    assert "pruner" not in capfd.readouterr().err


def test_a_grid_becomes_values(folder, capfd):
    file = exported(capfd, "method.rank=4,8", "data.vars.tone=kind,'very kind'")
    assert file["method"] == "grid"
    assert file["parameters"]["method.rank"] == {"values": [4, 8]}
    assert len(file["parameters"]["data.vars.tone"]["values"]) == 2
    assert "run_cap" not in file


def test_the_command_that_an_agent_runs_composes_and_runs(folder, capfd):
    file = exported(capfd, *SEARCH)
    argv = agents_command(file, {"train.learning_rate": 0.00037, "method.rank": 8})
    config = prepare(resolve(argv)).config
    assert (config.train.learning_rate, config.method.rank, config.track.wandb) == (0.00037, 8, True)
    # The stand-ins track nothing, so that wandb need not be there.
    assert cli.dispatch([*argv, "run_dir=run", "track.wandb=false"]) == ExitCode.DONE
    assert rundir.load_config(folder / "run").method.rank == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seed=1"], "nothing is varied"),
        (["seed=1,2", "sweep.metric=gguf_bytes"], "is not logged while training"),
        (["method.rank=0,8"], "method.rank .*>= 1"),
        (["seed=1,2", "train.eval_steps=null"], r"train\.eval_steps: is null.* wandb compares trials"),
        (["train.eval_steps=1,null"], r"train\.eval_steps: is null.* wandb compares trials"),
        (["seed=1,2", "stages=[data]", "sweep.metric=train_loss"], "no train_loss: nothing is trained"),
    ],
)
def test_what_wandb_cannot_do_is_told(arguments, message, folder):
    with pytest.raises(UserError, match=message):
        cli.dispatch(["sweep", "wandb", *BASE, *arguments])


# wandb's own agent, but for its three questions to the server: which sweep, who are you, what next.
AGENT = """
import multiprocessing, sys
from pathlib import Path
import wandb
from wandb import wandb_agent
from wandb.apis.public import sweeps

points = [{"train.learning_rate": 0.002, "method.rank": 4}, {"train.learning_rate": 0.0005, "method.rank": 8}]
answers = [
    [{
        "type": "run",
        "program": "tunerun",
        "run_id": f"run{number}",
        "args": {key: {"value": value} for key, value in point.items()},
    }]
    for number, point in enumerate(points)
]
sweeps._sweep_with_runs = lambda *_: {"config": Path(sys.argv[1]).read_text()}
sweeps._register_agent = lambda *_, **__: {"id": "agent"}
# One run at a time.
sweeps._agent_heartbeat = lambda api, agent, metrics, running: answers.pop(0) if answers and not running else []
wandb.Api = lambda: None
wandb_agent.Agent.POLL_INTERVAL = 0.2
agent = wandb_agent.Agent(None, multiprocessing.Queue(), sweep_id="sweep", count=len(points))
agent.run()
"""


@pytest.mark.slow
def test_wandbs_own_agent_runs_the_file(tmp_path):
    pytest.importorskip("wandb", reason="needs wandb")
    folders = {"bin": tmp_path / "bin", "work": tmp_path / "work"}
    for folder in folders.values():
        folder.mkdir()
    # What pip installs as `tunerun`.
    command = folders["bin"] / "tunerun"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tunerun "$@"\n')
    command.chmod(0o755)
    path = os.pathsep.join((str(folders["bin"]), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "src")}
    environment |= {"WANDB_MODE": "offline", "WANDB_SWEEP_ID": "sweep", "HF_HUB_OFFLINE": "1"}
    options = {"cwd": folders["work"], "env": environment, "text": True, "timeout": 280, "check": False}
    recipe = [
        "+recipe=quickstart",
        "data.vars.name=A",
        "data.vars.author=B",
        "stages=[data,train]",
        "train.max_steps=1",
        "train.eval_steps=1",
    ]
    argv = [command, "sweep", "wandb", *recipe, "train.learning_rate=1e-3,2e-3", "method.rank=4,8"]
    file = tmp_path / "sweep.yaml"
    file.write_text(subprocess.run(argv, capture_output=True, **options).stdout)

    done = subprocess.run([sys.executable, "-c", AGENT, str(file)], capture_output=True, **options)

    assert done.returncode == 0, done.stdout + done.stderr
    runs = sorted((folders["work"] / "outputs/quickstart").iterdir())
    assert len(runs) == 2, done.stdout + done.stderr
    tried = [rundir.load_config(run) for run in runs]
    assert [(config.train.learning_rate, config.method.rank) for config in tried] == [(0.002, 4), (0.0005, 8)]
    # The runs are those that the agent was told of, in its sweep.
    logs = [log.read_bytes() for run in runs for log in run.glob("wandb/offline-run-*/*.wandb")]
    assert [number for number in (0, 1) for log in logs if f"run{number}".encode() in log] == [0, 1]
    assert all(b"train/eval_loss" in log or b"train/loss" in log for log in logs)
