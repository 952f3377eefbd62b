"""`tunerun -m ... cluster=slurm` on a machine with a stand-in for Slurm: one array job, a task for each trial."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from tunerun import cli
from tunerun.errors import ExitCode, UserError
from tunerun.run import record

BASE = ("-m", "model.path=model", "method=lora", "stages=[data,train]", "data.path=rows.txt", "name=mine")
QUEUED = (*BASE, "cluster=slurm", "hardware.device=cpu")
RATES = "train.learning_rate=1e-3,1e-4,1e-5"


@pytest.fixture
def sweep_dir(slurm, tmp_path):
    """A sweep of three trials that is queued as job 42."""
    slurm("")
    assert cli.dispatch([*QUEUED, RATES, "sweep.jobs=2"]) == ExitCode.DONE
    (found,) = (tmp_path / "outputs/sweeps").iterdir()
    return found


@pytest.fixture
def says(slurm, tmp_path):
    """Sets what squeue says of the tasks of job 42."""

    def tasks(**states):
        lines = "; ".join(f'echo "42_{number[1:]}|{state}"' for number, state in states.items())
        slurm("")
        (tmp_path / "bin/squeue").write_text(f"#!/bin/bash\n{lines}\n")

    return tasks


@pytest.fixture
def task(monkeypatch):
    """Runs a task of job 42, as its script does."""

    def run(sweep_dir, number, code=ExitCode.DONE):
        with monkeypatch.context() as patch:
            # Slurm counts each task as a job of its own, too.
            variables = {"JOB_ID": 43 + number, "ARRAY_JOB_ID": 42, "ARRAY_TASK_ID": number, "PROCID": 0, "NODEID": 0,
                         "JOB_NODELIST": "here"}  # fmt: skip
            for name, value in variables.items():
                patch.setenv(f"SLURM_{name}", str(value))
            assert cli.dispatch(["resume", str(sweep_dir / str(number))]) == code
            assert cli.dispatch(["sweep", "show", str(sweep_dir)]) == ExitCode.DONE

    return run


def states(sweep_dir):
    trials = json.loads((sweep_dir / "results.json").read_text())["trials"]
    return [trial["status"] for trial in sorted(trials, key=lambda trial: trial["trial"])]


def submitted(tmp_path):
    return (tmp_path / "submitted").read_text().splitlines()


def test_one_job_has_a_task_for_each_trial(capfd, sweep_dir, tmp_path):
    out = capfd.readouterr().out.splitlines()
    short = sweep_dir.relative_to(tmp_path)
    assert out[0] == f"job 42 is queued with 3 trials, 2 at a time: {short}/job.sbatch"
    assert out[1] == f"watch:  tunerun sweep show {short}"
    assert out[-1] == f"sweep: {sweep_dir}"
    assert submitted(tmp_path) == [f"--parsable --array=0-2%2 {sweep_dir}/job.sbatch"]
    script = (sweep_dir / "job.sbatch").read_text()
    assert "#SBATCH --array=0-2%2\n" in script
    assert f"#SBATCH --output={sweep_dir}/%a/logs/slurm-%A_%a.log\n" in script
    assert f'tunerun resume {sweep_dir}/"$SLURM_ARRAY_TASK_ID" &\n' in script
    assert 'scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"\n' in script
    for number in range(3):
        assert record.read(sweep_dir / str(number)).status == "submitted"
        assert json.loads((sweep_dir / str(number) / "job.json").read_text())["id"] == f"42_{number}"
        assert (sweep_dir / str(number) / "logs").is_dir()


def test_the_script_is_sound_bash(sweep_dir):
    subprocess.run(["bash", "-n", str(sweep_dir / "job.sbatch")], check=True)
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", str(sweep_dir / "job.sbatch")], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_every_task_writes_the_table_anew(sweep_dir, says, task, capfd):
    says(_0="RUNNING", _1="RUNNING", _2="PENDING")
    assert cli.dispatch(["sweep", "show", str(sweep_dir)]) == ExitCode.DONE
    assert states(sweep_dir) == ["running", "running", "queued"]
    task(sweep_dir, 1)
    assert states(sweep_dir) == ["running", "done", "queued"]
    capfd.readouterr()
    cli.dispatch(["runs"])
    listed = {line.split()[-1][-1]: line.split()[2] for line in capfd.readouterr().out.splitlines()[1:]}
    assert listed == {"0": "running", "1": "done", "2": "queued"}
    task(sweep_dir, 0)
    task(sweep_dir, 2)
    assert states(sweep_dir) == ["done", "done", "done"]
    assert json.loads((sweep_dir / "1/job.json").read_text())["id"] == "42_1"


def test_a_resume_queues_what_is_neither_done_nor_queued(sweep_dir, says, task, tmp_path, monkeypatch, capfd):
    task(sweep_dir, 1)
    says(_0="CANCELLED", _2="RUNNING")
    script = (sweep_dir / "job.sbatch").read_text().replace("#SBATCH --nodes", "#SBATCH --exclude=bad\n#SBATCH --nodes")
    (sweep_dir / "job.sbatch").write_text(script)
    assert cli.dispatch(["resume", str(sweep_dir)]) == ExitCode.DONE
    assert submitted(tmp_path)[1:] == [f"--parsable --array=0%2 {sweep_dir}/job.sbatch"]
    assert (sweep_dir / "job.sbatch").read_text() == script, "it was changed by hand"
    says(_0="PENDING", _2="RUNNING")
    capfd.readouterr()
    assert cli.dispatch(["resume", str(sweep_dir)]) == ExitCode.DONE
    assert "2 of 3 trials are queued or running" in capfd.readouterr().out
    says()
    assert cli.dispatch(["resume", str(sweep_dir)]) == ExitCode.DONE
    assert submitted(tmp_path)[2:] == [f"--parsable --array=0,2%2 {sweep_dir}/job.sbatch"]


def test_a_task_that_fails_is_no_end_of_the_sweep(slurm, task, tmp_path):
    (tmp_path / "broken.txt").write_bytes(b"\xff\xfe broken")
    slurm("")
    cli.dispatch([*(item for item in QUEUED if item[:9] != "data.path"), "data.path=broken.txt,rows.txt"])
    (sweep_dir,) = (tmp_path / "outputs/sweeps").iterdir()
    task(sweep_dir, 0, ExitCode.STAGE_FAILED)
    task(sweep_dir, 1)
    assert states(sweep_dir) == ["failed", "done"]


def test_the_last_stages_of_the_best_are_queued_when_all_are_done(slurm, task, tmp_path, monkeypatch, capfd):
    slurm("")
    staged = [*(item for item in QUEUED if item[:6] != "stages"), "stages=[data,train,merge]"]
    assert cli.dispatch([*staged, "sweep.finish_best=true", "sweep.metric=[train_loss]", "seed=1,2"]) == ExitCode.DONE
    (sweep_dir,) = (tmp_path / "outputs/sweeps").iterdir()
    for number in range(2):
        task(sweep_dir, number)
        assert not (sweep_dir / f"{number}/merged").exists()
        row = {"step": 1, "loss": float(5 - number), "tokens_per_second": 1.0}
        (sweep_dir / f"{number}/metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert cli.dispatch(["resume", str(sweep_dir)]) == ExitCode.DONE
    assert submitted(tmp_path)[1:] == [f"--parsable --array=1%1 {sweep_dir}/job.sbatch"]
    task(sweep_dir, 1)
    assert (sweep_dir / "1/merged").exists()
    capfd.readouterr()
    assert cli.dispatch(["resume", str(sweep_dir)]) == ExitCode.DONE
    assert "the best as a recipe: tunerun sweep best" in capfd.readouterr().out


def test_an_array_without_a_best_trial_says_why(sweep_dir, task, capfd):
    for number in range(3):
        task(sweep_dir, number)
    capfd.readouterr()
    assert cli.dispatch(["resume", str(sweep_dir)]) == ExitCode.DONE
    out = capfd.readouterr().out
    assert "there is no best one: no trial that ended well has eval_loss\n" in out
    assert "as a recipe" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hardware.threads=1,2",), r"cluster: the trials ask for different nodes, and the tasks of one job are equal"),
        (("cluster=local,slurm",), r"cluster: the trials ask for different nodes"),
        (("seed=1,2", 'cluster.setup=["export MY_PASSWORD=hunter2hunter2"]'), r"cluster\.setup\[0\]: holds a secret"),
        (
            ("seed=1,2", "cluster=skypilot", 'cluster.setup=["pip install tunerun"]'),
            r"waits for what it runs, and skypilot queues it",
        ),
        (
            ("hydra/sweeper=tunerun_optuna", "seed=1,2", "sweep.trials=2"),
            r"cluster\.kind: this command waits for what it runs, and slurm queues it",
        ),
    ],
)
def test_what_cannot_be_one_array_is_refused_before_anything_is_written(slurm, tmp_path, arguments, message):
    slurm("")
    taken = {item.split("=")[0] for item in arguments}
    with pytest.raises(UserError, match=message):
        cli.dispatch([*(item for item in QUEUED if item.split("=")[0] not in taken), *arguments])
    assert not (tmp_path / "outputs").exists()
    assert not (tmp_path / "submitted").exists()


def test_a_secret_of_the_shell_is_in_no_file_of_the_sweep(slurm, tmp_path, monkeypatch):
    slurm("")
    monkeypatch.setenv("HF_TOKEN", "not-to-be-seen-12345")
    assert cli.dispatch([*QUEUED, RATES, 'cluster.setup=["test -n $HF_TOKEN"]']) == ExitCode.DONE
    texts = [path.read_text() for path in (tmp_path / "outputs").rglob("*") if path.is_file()]
    assert len(texts) > 10
    assert not any("not-to-be-seen" in text for text in texts)


def test_what_slurm_refuses_is_told_and_can_be_queued_again(slurm, tmp_path):
    slurm("", "echo 'sbatch: error: Invalid job array specification' >&2; exit 1")
    with pytest.raises(UserError, match=r"Slurm refused .*job\.sbatch: sbatch: error: Invalid job array"):
        cli.dispatch([*QUEUED, RATES])
    (sweep_dir,) = (tmp_path / "outputs/sweeps").iterdir()
    assert record.read(sweep_dir / "0").status == "failed"
    slurm("")
    assert cli.dispatch(["resume", str(sweep_dir)]) == ExitCode.DONE
    assert submitted(tmp_path) == [f"--parsable --array=0-2%1 {sweep_dir}/job.sbatch"]
