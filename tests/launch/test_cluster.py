"""The batch script and the task of a run: their text, and what bash does with the script."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.plan.test_build import config, planned
from tunerun.errors import UserError
from tunerun.launch import cluster
from tunerun.launch.cluster import Typed

GOLDEN = Path(__file__).parent / "golden"
FULL = {
    "hardware__strategy": "zero2",
    "hardware__processes": 8,
    "hardware__gpu": "h100-80g",
    "cluster__kind": "slurm",
    "cluster__nodes": 2,
    "cluster__cpus": 96,
    "cluster__memory": "512GB",
    "cluster__time": "12:00:00",
    "cluster__partition": "gpu",
    "cluster__account": "lab",
    "cluster__qos": "high",
    "cluster__extra": ["--constraint=h100&ib"],
    "cluster__setup": ["module load cuda/13", "source ~/venv/bin/activate"],
    "cluster__python": "python",
}
PLAIN = {"cluster__kind": "slurm", "hardware__device": "cpu", "cluster__python": "python3"}


def script(directory="/home/me/my project", run_dir="/runs/small", allow=(), **changes):
    changes = {**changes, "run_dir": run_dir}
    typed = Typed(arguments=(), directory=Path(directory), allow=frozenset(allow))
    return cluster.slurm_script(planned(**changes), config(**changes), typed)


def options(text):
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]


def test_every_key_of_the_cluster_stands_in_the_script():
    assert script(**FULL) == (GOLDEN / "job.sbatch").read_text(encoding="utf-8")


def test_what_is_not_set_is_left_to_the_cluster():
    assert options(script(**PLAIN)) == [
        "--job-name=small",
        "--chdir='/home/me/my project'",
        "--output=/runs/small/logs/slurm-%j.log",
        "--open-mode=append",
        "--nodes=1",
        "--ntasks-per-node=1",
        "--cpus-per-task=8",
        "--signal=B:USR1@300",
        "--requeue",
    ]


@pytest.mark.parametrize(
    ("changes", "cpus", "threads"),
    [
        ({}, 8, 8),
        ({"hardware__threads": 3}, 3, 3),
        ({"cluster__cpus": 6}, 6, 6),
        ({"cluster__cpus": 32, "hardware__strategy": "ddp", "hardware__processes": 4}, 32, 8),
        ({"hardware__strategy": "ddp", "hardware__processes": 4}, 32, 8),
    ],
)
def test_the_plan_counts_on_the_cores_that_the_job_asks_for(changes, cpus, threads):
    found = planned(**PLAIN, **changes)
    assert f"--cpus-per-task={cpus}" in options(script(**PLAIN, **changes))
    assert found.train.placement.threads == threads


def test_keys_that_may_differ_are_allowed_by_the_job_too():
    text = script(**PLAIN, allow=("train.epochs", "data"))
    assert " resume /runs/small --allow data --allow train.epochs &\n" in text
    assert cluster.allowed(text) == ["data", "train.epochs"]
    assert cluster.allowed(script(**PLAIN)) == []


def test_without_requeue_nothing_is_queued_again():
    text = script(**PLAIN, cluster__requeue=False)
    assert "--no-requeue" in options(text)
    assert "scontrol" not in text


@pytest.mark.parametrize("changes", [FULL, PLAIN, {**PLAIN, "cluster__requeue": False}])
def test_the_script_is_sound_bash(changes, tmp_path):
    file = tmp_path / "job.sbatch"
    file.write_text(script(**changes))
    subprocess.run(["bash", "-n", str(file)], check=True)
    if shutil.which("shellcheck"):
        # What activates an environment is not there to be followed.
        done = subprocess.run(["shellcheck", "--exclude=SC1090,SC1091", str(file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.fixture
def job(tmp_path):
    """Starts a script under a stand-in srun that notes USR1 and ends with a given code a moment later."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in {
        "srun": 'trap "signalled=1" USR1\necho "$@" > started\nfor _ in $(seq 200); do [ "$signalled" ] && break; '
        'sleep 0.05; [ "$ENDS" ] && break; done\nsleep 0.3\nexit "$CODE"',
        "scontrol": 'echo "$@" > requeued',
        "python3": 'echo "$@" > table; exit 1',
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    started = []

    def start(text, code, *, ends):
        (tmp_path / "job.sbatch").write_text(text)
        env = {"PATH": f"{programs}:{os.environ['PATH']}", "CODE": str(code), "SLURM_JOB_ID": "7"}
        env |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
        if ends:
            env["ENDS"] = "1"
        started.append(subprocess.Popen(["bash", "job.sbatch"], cwd=tmp_path, env=env, start_new_session=True))
        while not (tmp_path / "started").exists():
            time.sleep(0.02)
        return started[0]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("code", [0, 1, 2, 3, 75])
def test_the_script_ends_with_the_runs_code(job, code, tmp_path):
    assert job(script(**PLAIN), code, ends=True).wait(10) == code
    assert not (tmp_path / "requeued").exists()
    wanted = "--ntasks-per-node=1 --cpus-per-task=1 --wait=0 python3 -P -m tunerun resume /runs/small"
    assert (tmp_path / "started").read_text().strip() == wanted


@pytest.mark.parametrize(
    ("number", "code", "changes", "again"),
    [
        (signal.SIGUSR1, 75, {}, True),
        (signal.SIGUSR1, 75, {"cluster__requeue": False}, False),
        (signal.SIGUSR1, 0, {}, False),
        (signal.SIGUSR1, 1, {}, False),
        (signal.SIGTERM, 75, {}, False),
    ],
)
def test_only_a_job_that_was_stopped_by_its_time_limit_is_queued_again(job, number, code, changes, again, tmp_path):
    process = job(script(**PLAIN, **changes), code, ends=number == signal.SIGTERM)
    time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(10) == code
    assert (tmp_path / "requeued").exists() == again
    if again:
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"


def test_a_task_writes_the_table_and_is_queued_again_for_itself(job, tmp_path):
    array = cluster.Array(sweep_dir=Path("/runs/my sweep"), trials=4, at_a_time=2)
    text = cluster.array_script(planned(**PLAIN), config(**PLAIN), Path("/home/me"), array)
    assert options(text)[:4] == ["--job-name='my sweep'", "--array=0-3%2", "--chdir=/home/me",
                                 "--output='/runs/my sweep/%a/logs/slurm-%A_%a.log'"]  # fmt: skip
    process = job(text, 75, ends=False)
    assert (tmp_path / "started").read_text().strip().endswith("python3 -P -m tunerun resume /runs/my sweep/3")
    time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)
    # A table that cannot be written keeps no trial from going on.
    assert process.wait(10) == 75
    assert (tmp_path / "table").read_text() == "-P -m tunerun sweep show /runs/my sweep\n"
    assert (tmp_path / "requeued").read_text() == "requeue 7_3\n"


SKY = {
    "hardware__strategy": "fsdp2",
    "hardware__processes": 8,
    "hardware__gpu": "h100-80g",
    "cluster__kind": "skypilot",
    "cluster__nodes": 2,
    "cluster__cpus": 96,
    "cluster__memory": "512GB",
    "cluster__infra": "k8s",
    "cluster__spot": True,
    "cluster__storage": "runs",
    "cluster__setup": ["sudo apt-get install -y cmake", "pip install 'tunerun[gguf]'"],
}
TYPED = Typed(
    arguments=("+recipe=small", "data.vars.name=A B", "run_dir=outputs/x"), directory=Path("/home/me/my project")
)


def task(typed=TYPED, **changes):
    changes = {**changes, "run_dir": "/home/me/outputs/small/2026-x"}
    return cluster.skypilot_task(planned(**changes), config(**changes), typed)


def test_a_task_asks_for_what_the_plan_needs():
    assert task(**SKY) == (GOLDEN / "task.yaml").read_text(encoding="utf-8")


def test_a_task_for_one_machine_keeps_its_run_in_a_bucket():
    one = {**SKY, "cluster__nodes": 1, "cluster__storage": "s3://runs", "cluster__spot": False}
    found = yaml.safe_load(task(**one))
    assert found["file_mounts"] == {"/tunerun": {"source": "s3://runs", "mode": "MOUNT_CACHED"}}
    assert "volumes" not in found
    assert "use_spot" not in found["resources"]
    assert found["run"] == "tunerun +recipe=small 'data.vars.name=A B' run_dir=/tunerun/small/2026-x\n"


def test_a_task_without_gpus_or_storage_uses_the_machine_it_gets():
    plain = {"cluster__kind": "skypilot", "hardware__device": "cpu", "cluster__setup": ["pip install tunerun"]}
    found = yaml.safe_load(task(**plain))
    assert found["run"].endswith(" run_dir=outputs/small/2026-x\n")
    assert set(found) == {"name", "workdir", "num_nodes", "resources", "setup", "run"}
    assert found["resources"]["cpus"] == "8+"
    assert set(found["resources"]) == {"cpus", "disk_size", "job_recovery"}


ONE = {"cluster__kind": "skypilot", "hardware__device": "cpu", "cluster__setup": ["pip install tunerun"]}


def test_a_task_names_the_folder_of_configs_within_the_project(tmp_path):
    (tmp_path / "project/more").mkdir(parents=True)
    typed = Typed(arguments=("+recipe=x",), directory=tmp_path / "project", config_dir=tmp_path / "project/more")
    assert yaml.safe_load(task(typed, **ONE))["run"].endswith("/2026-x --config-dir more\n")
    outside = Typed(arguments=("+recipe=x",), directory=tmp_path / "project", config_dir=tmp_path)
    with pytest.raises(UserError, match=r"--config-dir: .* is not in .*/project, which SkyPilot copies"):
        task(outside, **ONE)


def test_a_task_names_only_what_is_copied_with_the_project(tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    within = Typed(arguments=("+recipe=x", "hydra.searchpath=[file://more,pkg://mine.conf]"), directory=project)
    kept = {"hardware__strategy": "zero2", "hardware__processes": 2}
    found = yaml.safe_load(task(within, **ONE, **kept, hardware__deepspeed="zero.json"))
    assert "'hydra.searchpath=[file://more,pkg://mine.conf]'" in found["run"]

    typed = Typed(arguments=(f'hydra.searchpath=["file://{project}/more",file://../other]',), directory=project)
    named = {"hardware__deepspeed": str(project / "zero.json"), "hardware__accelerate": "/etc/accelerate.yaml"}
    with pytest.raises(UserError) as refused:
        task(replace(typed, config_dir=tmp_path), **ONE, **kept, **named)
    told = [f"{problem.where}: {problem.what} {problem.fix}" for problem in refused.value.problems]
    elsewhere = f"SkyPilot copies {project} to another place. Name it from there:"
    absent = f"is not in {project}, which SkyPilot copies to the nodes. Move it there, or type the command further up."
    assert told == [
        f"hardware.deepspeed: the nodes do not have {project}/zero.json: {elsewhere} zero.json",
        f"hardware.accelerate: /etc/accelerate.yaml {absent}",
        f"hydra.searchpath: the nodes do not have {project}/more: {elsewhere} more",
        f"hydra.searchpath: {tmp_path}/other {absent}",
        f"--config-dir: {tmp_path} {absent}",
    ]


def test_a_task_that_goes_on_types_the_first_command_with_what_is_new():
    first = replace(TYPED, config_dir=Path("/home/me/my project/more"))
    more = Typed(arguments=("data.vars.name=C", "train.epochs=3"), directory=Path("/elsewhere"))
    again = cluster.continued(task(first, **ONE), more)
    assert again.arguments == ("+recipe=small", "run_dir=outputs/small/2026-x", "data.vars.name=C", "train.epochs=3")
    assert (again.directory, again.config_dir) == (first.directory, first.config_dir)
    assert yaml.safe_load(task(again, **ONE))["run"] == (
        "tunerun +recipe=small data.vars.name=C train.epochs=3 run_dir=outputs/small/2026-x --config-dir more\n"
    )
    for command in ("python other.py", "tunerun +recipe=a && tunerun +recipe=b"):
        with pytest.raises(ValueError, match=command[:6]):
            cluster.continued(f"workdir: /x\nrun: {command}\n", more)
