"""`cluster=slurm` on a machine with a stand-in sbatch and squeue: what is written, printed and shown."""

from __future__ import annotations

import json
import socket

import pytest
import yaml

from tunerun import cli
from tunerun.errors import ExitCode, UserError
from tunerun.run import record

TYPED = ("model.path=model", "data.path=rows.txt", "stages=[data,train]", "run_dir=outputs/mine", "name=mine")
QUEUED = (*TYPED, "cluster=slurm", "hardware.device=cpu")
JOB = {"SLURM_JOB_ID": "42", "SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_STEP_NUM_NODES": "1",
       "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NODELIST": "here"}  # fmt: skip


def shown(capfd):
    capfd.readouterr()
    assert cli.dispatch(["runs"]) == ExitCode.DONE
    return capfd.readouterr().out.splitlines()[1].split()[2]


def test_a_run_is_prepared_queued_and_shown(slurm, tmp_path, capfd):
    assert cli.dispatch(QUEUED) == ExitCode.DONE
    out = capfd.readouterr().out.splitlines()
    assert out[0] == "job 42 is queued: outputs/mine/job.sbatch"
    assert out[-1] == f"run: {tmp_path}/outputs/mine"
    assert (tmp_path / "submitted").read_text() == f"--parsable {tmp_path}/outputs/mine/job.sbatch\n"
    run_dir = tmp_path / "outputs/mine"
    assert record.read(run_dir).status == "submitted"
    assert json.loads((run_dir / "job.json").read_text())["id"] == "42"
    assert json.loads((run_dir / "plan.json").read_text())["steps"]
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["cluster"]["kind"] == "slurm"
    assert (run_dir / "logs").is_dir(), "Slurm does not make the folder of the log"
    assert cli.dispatch(["show", "outputs/mine"]) == ExitCode.DONE
    out = capfd.readouterr().out
    assert out.startswith("mine: queued\n")
    assert "job       42 of Slurm" in out


def test_the_states_of_a_run_that_never_began(slurm, capfd):
    cli.dispatch(QUEUED)
    for state, wanted in [
        ("PENDING", "queued"), ("RUNNING", "running"), ("CANCELLED", "cancelled"), ("TIMEOUT", "timeout"),
        ("COMPLETED", "failed"), ("", "submitted"),
    ]:  # fmt: skip
        slurm(state)
        assert shown(capfd) == wanted


def test_within_its_job_the_run_is_done(slurm, monkeypatch, tmp_path, capfd):
    cli.dispatch(QUEUED)
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    assert cli.dispatch(["resume", "outputs/mine"]) == ExitCode.DONE
    assert record.read(tmp_path / "outputs/mine").status == "done"
    slurm("COMPLETED")
    assert shown(capfd) == "done"


def test_a_job_that_was_submitted_by_hand_is_noted(slurm, monkeypatch, tmp_path):
    cli.dispatch(QUEUED)
    for name, value in {**JOB, "SLURM_JOB_ID": "43"}.items():
        monkeypatch.setenv(name, value)
    assert cli.dispatch(["resume", "outputs/mine"]) == ExitCode.DONE
    assert json.loads((tmp_path / "outputs/mine/job.json").read_text())["id"] == "43"


def test_a_run_that_was_stopped_waits_again_or_was_killed(slurm, monkeypatch, tmp_path, capfd):
    cli.dispatch(QUEUED)
    run_dir = tmp_path / "outputs/mine"
    entry = record.read(run_dir)
    for status, state, wanted in [
        ("preempted", "PENDING", "requeued"), ("preempted", "COMPLETING", "preempted"),
        ("preempted", "FAILED", "preempted"), ("running", "PENDING", "requeued"), ("running", "NODE_FAIL", "node_fail"),
        ("running", "COMPLETED", "killed"), ("running", "", "killed"), ("failed", "PENDING", "failed"),
    ]:  # fmt: skip
        record.write(run_dir, record.dataclasses.replace(entry, status=status))
        slurm(state)
        assert shown(capfd) == wanted, (status, state)


def test_a_script_that_was_edited_is_submitted_as_it_stands(slurm, tmp_path):
    cli.dispatch(QUEUED)
    slurm("")
    script = tmp_path / "outputs/mine/job.sbatch"
    edited = script.read_text().replace("#SBATCH --nodes", "#SBATCH --exclude=bad1\n#SBATCH --nodes")
    script.write_text(edited)
    assert cli.dispatch(["resume", "outputs/mine"]) == ExitCode.DONE
    assert script.read_text() == edited
    assert cli.dispatch(["resume", "outputs/mine", "cluster.partition=long"]) == ExitCode.DONE
    assert "--partition=long" in script.read_text()
    assert "--exclude" not in script.read_text()


def test_what_a_trained_run_was_trained_with_is_compared_before_it_is_queued(slurm, tmp_path, monkeypatch):
    cli.dispatch(QUEUED)
    run_dir = tmp_path / "outputs/mine"
    with monkeypatch.context() as job:
        for name, value in JOB.items():
            job.setenv(name, value)
        assert cli.dispatch(["resume", "outputs/mine"]) == ExitCode.DONE
    slurm("")
    kept = {name: (run_dir / name).read_text() for name in ("config.yaml", "plan.json", "job.sbatch", "run.json")}
    submitted = (tmp_path / "submitted").read_text()
    changed = ["resume", "outputs/mine", "train.learning_rate=0.5"]
    with pytest.raises(
        UserError, match=r"train\.learning_rate: was .* and is 0\.5 now\. .* --allow train\.learning_rate"
    ):
        cli.dispatch(changed)
    assert kept == {name: (run_dir / name).read_text() for name in kept}
    assert (tmp_path / "submitted").read_text() == submitted
    assert cli.dispatch([*changed, "--allow", "train.learning_rate"]) == ExitCode.DONE
    assert " resume " + str(run_dir) + " --allow train.learning_rate &\n" in (run_dir / "job.sbatch").read_text()
    with monkeypatch.context() as job:
        for name, value in JOB.items():
            job.setenv(name, value)
        # As the script does it.
        assert cli.dispatch(["resume", "outputs/mine", "--allow", "train.learning_rate"]) == ExitCode.DONE
    assert cli.dispatch(["resume", "outputs/mine"]) == ExitCode.DONE
    assert "--allow" not in (run_dir / "job.sbatch").read_text(), "what was allowed once is not allowed for ever"


def test_a_run_is_not_queued_twice(slurm):
    cli.dispatch(QUEUED)
    with pytest.raises(UserError, match=r"job 42 of this run is PENDING\. Wait for it, or end it: scancel 42"):
        cli.dispatch(["resume", "outputs/mine"])


def test_what_slurm_refuses_is_told_in_its_words(slurm, tmp_path):
    slurm("", "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1")
    with pytest.raises(UserError, match=r"Slurm refused .*job\.sbatch: sbatch: error: invalid partition specified: x"):
        cli.dispatch(QUEUED)
    assert record.read(tmp_path / "outputs/mine").status == "failed"
    slurm("")
    assert cli.dispatch(QUEUED) == ExitCode.DONE


def test_without_slurm_the_script_stays_for_another_machine(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"no sbatch on this machine\. .* sbatch .*outputs/mine/job\.sbatch"):
        cli.dispatch(QUEUED)
    assert (tmp_path / "outputs/mine/job.sbatch").is_file()


@pytest.mark.parametrize(
    "override",
    [
        'cluster.setup=["export MY_PASSWORD=hunter2hunter2"]',
        'cluster.extra=["--export=WANDB_API_KEY=0123456789abcdef"]',
    ],
)
def test_a_secret_never_reaches_the_script(slurm, tmp_path, override):
    with pytest.raises(UserError, match=r"cluster\.(setup|extra)\[0\]: holds a secret"):
        cli.dispatch((*QUEUED, override))
    assert not (tmp_path / "outputs/mine/job.sbatch").exists()


def test_the_value_of_a_variable_that_the_config_names_reaches_neither_script_nor_plan(
    slurm, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("TEACHER", "plain-looking-value")
    typed = (*QUEUED, "answer.api_key_env=TEACHER", 'cluster.setup=["echo plain-looking-value"]')
    with pytest.raises(UserError, match=r"cluster\.setup\[0\]: holds a secret"):
        cli.dispatch(typed)
    assert not (tmp_path / "outputs/mine/job.sbatch").exists()
    assert cli.dispatch(["plan", *typed]) == ExitCode.DONE
    out = capfd.readouterr().out
    assert "echo [redacted]" in out
    assert "plain-looking-value" not in out


def test_a_secret_of_the_shell_is_in_no_file_of_the_run(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "not-to-be-seen-12345")
    assert cli.dispatch((*QUEUED, 'cluster.setup=["test -n $HF_TOKEN"]')) == ExitCode.DONE
    texts = [path.read_text() for path in (tmp_path / "outputs/mine").rglob("*") if path.is_file()]
    assert not any("not-to-be-seen" in text for text in texts)


def test_the_plan_shows_the_script(slurm, capfd):
    assert cli.dispatch(["plan", *QUEUED, 'cluster.setup=["export MY_PASSWORD=hunter2hunter2"]']) == ExitCode.DONE
    out = capfd.readouterr().out
    assert "\njob.sbatch\n  #!/bin/bash\n" in out
    assert "hunter2" not in out
    assert cli.dispatch(["plan", *QUEUED, "--json"]) == ExitCode.DONE
    assert json.loads(capfd.readouterr().out)["files"]["job.sbatch"].startswith("#!/bin/bash")


def test_a_task_of_skypilot_is_written_and_not_submitted(slurm, tmp_path, capfd):
    sky = (*TYPED, "cluster=skypilot", "hardware.device=cpu", 'cluster.setup=["pip install tunerun"]')
    assert cli.dispatch(["plan", *sky]) == ExitCode.DONE
    assert "\ntask.yaml\n  name: mine\n" in capfd.readouterr().out
    assert cli.dispatch(sky) == ExitCode.DONE
    out = capfd.readouterr().out.splitlines()
    assert out[0] == "written: outputs/mine/task.yaml"
    assert out[1].startswith("start:  sky jobs launch outputs/mine/task.yaml ")
    assert out[-1] == f"run: {tmp_path}/outputs/mine"
    assert yaml.safe_load((tmp_path / "outputs/mine/task.yaml").read_text())["num_nodes"] == 1
    assert shown(capfd) == "prepared"
    assert not (tmp_path / "submitted").exists()


def test_a_task_of_skypilot_that_goes_on_keeps_its_recipe(slurm, tmp_path, monkeypatch):
    sky = (*TYPED, "cluster=skypilot", "hardware.device=cpu", 'cluster.setup=["pip install tunerun"]')
    (tmp_path / "more/model").mkdir(parents=True)
    (tmp_path / "more/model/mine.yaml").write_text("path: model\n")
    cli.dispatch(["model=mine", *sky, "--config-dir", "more"])
    task = tmp_path / "outputs/mine/task.yaml"
    first = yaml.safe_load(task.read_text())
    assert first["run"].startswith("tunerun model=mine ")
    assert first["run"].endswith(" --config-dir more\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert cli.dispatch(["resume", "../outputs/mine", "train.epochs=3"]) == ExitCode.DONE
    again = yaml.safe_load(task.read_text())
    assert again["run"] == first["run"].replace(" run_dir=", " train.epochs=3 run_dir=")
    assert again["workdir"] == str(tmp_path)
    with pytest.raises(UserError, match=r"--allow: a task of SkyPilot types the run's first command again"):
        cli.dispatch(["resume", "../outputs/mine", "train.epochs=4", "--allow", "train.epochs"])
    task.write_text(task.read_text().replace("tunerun model", "python mine.py; tunerun model"))
    with pytest.raises(UserError, match=r"task\.yaml: its command was edited by hand\. .*sky jobs launch"):
        cli.dispatch(["resume", "../outputs/mine", "train.epochs=4"])
    task.unlink()
    with pytest.raises(UserError, match=r"there is no task\.yaml, so that the command its nodes are to type"):
        cli.dispatch(["resume", "../outputs/mine", "train.epochs=4"])


def test_on_its_machine_a_task_of_skypilot_runs(slurm, tmp_path, monkeypatch):
    for name, value in {"NODE_RANK": "0", "NUM_NODES": "1", "NODE_IPS": "10.0.0.4"}.items():
        monkeypatch.setenv(f"SKYPILOT_{name}", value)
    sky = (*TYPED, "cluster=skypilot", "hardware.device=cpu", 'cluster.setup=["pip install tunerun"]')
    assert cli.dispatch(sky) == ExitCode.DONE
    assert record.read(tmp_path / "outputs/mine").status == "done"


TWO = ("hardware=ddp", "hardware.device=cpu", "hardware.processes=1", "cluster.nodes=2")


def test_what_is_not_training_meets_no_other_nodes(slurm, tmp_path, capfd):
    rows = (*TYPED[:2], "stages=[data]", *TWO)
    assert cli.dispatch([*rows, "run_dir=outputs/s", "cluster=slurm"]) == ExitCode.DONE
    with socket.create_server(("", 0)) as taken:
        meets = ("cluster=multi_node", f"cluster.rendezvous=127.0.0.1:{taken.getsockname()[1]}")
        assert cli.dispatch([*rows, "run_dir=outputs/m", *meets]) == ExitCode.DONE
    assert record.read(tmp_path / "outputs/m").status == "done"
    capfd.readouterr()
    # TEST-NET-1 (RFC 5737) is nobody's, so that another node leads.
    meets = ("cluster=multi_node", "cluster.rendezvous=192.0.2.1:29400")
    assert cli.dispatch([*rows, "run_dir=outputs/n", *meets]) == ExitCode.DONE
    assert capfd.readouterr().out == "nothing to do on this node: 192.0.2.1 runs data alone\n"


def test_a_sweep_leads_no_other_nodes(slurm):
    meets = ("cluster=multi_node", "cluster.rendezvous=127.0.0.1:29400")
    with pytest.raises(UserError, match=r"cluster\.nodes: a sweep runs its trials on this node, and 2 are asked for"):
        cli.dispatch(["-m", *TYPED[:3], *TWO, *meets, "train.epochs=1,2"])


def test_data_are_prepared_at_once(slurm, tmp_path):
    assert cli.dispatch([*TYPED[:2], "stages=[data]", "run_dir=outputs/d", "cluster=slurm"]) == ExitCode.DONE
    assert record.read(tmp_path / "outputs/d").status == "done"
