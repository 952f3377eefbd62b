"""Runs as jobs of a real Slurm cluster of one machine."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from tunerun.hashes import path_sha256
from tunerun.run import record

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(1500)]

TRAINING = ("+recipe=quickstart", "hardware=cpu", "hardware.threads=1", "stages=[data,train]")
SHORT = (*TRAINING, "train.max_steps=3")
QUEUED = ("cluster=slurm", "cluster.cpus=1")


def weights(run_dir):
    return path_sha256(run_dir / "adapter/adapter_model.safetensors", "file")


def losses(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def training_seconds(run_dir):
    return json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])["seconds"]


def job_log(run_dir):
    return "".join(path.read_text() for path in sorted((run_dir / "logs").glob("slurm-*.log")))


def test_a_run_is_queued_and_done(cluster, tunerun, wait, project):
    out = tunerun(*SHORT, *QUEUED, "cluster.extra=[--hold]", "run_dir=held")
    job = re.match(r"job (\d+) is queued: held/job\.sbatch\n", out)[1]
    assert wait("held", "queued") == ["queued"]
    assert "queued" in tunerun("runs", ".")
    tunerun("resume", "held", code=2)
    cluster.ask("scontrol", "release", job)
    assert wait("held", "done")[-1] == "done"
    assert "done after" in job_log(project / "held")
    tunerun(*SHORT, "run_dir=here")
    assert weights(project / "held") == weights(project / "here")


def test_the_time_limit_saves_and_queues_again_and_ends_with_the_same_bits(cluster, tunerun, wait, project):
    alone = (*TRAINING, "train.global_batch_size=1")
    tunerun(*alone, "train.max_steps=100", "run_dir=probe")
    # Slurm counts in minutes: training has to last longer than what the signal leaves of two of them, and not for ever.
    steps = round(100 * 110 / training_seconds(project / "probe"))
    long = (*alone, f"train.max_steps={steps}")
    tunerun(*long, "run_dir=whole")
    tunerun(*long, *QUEUED, 'cluster.time="0:02:00"', "cluster.signal_seconds=50", "run_dir=parts")
    seen = wait("parts", "done", "failed", seconds=1200)
    run_dir = project / "parts"
    assert seen[-1] == "done", job_log(run_dir)
    assert "requeued" in seen, f"the time limit was never reached in {steps} steps"
    calls = record.read(run_dir).invocations
    assert len(calls) > 1
    assert [call.exit_code for call in calls] == [75] * (len(calls) - 1) + [0]
    assert job_log(run_dir).count("SIGUSR1: stopping within") == len(calls) - 1
    assert losses(run_dir) == losses(project / "whole")
    assert weights(run_dir) == weights(project / "whole")


def test_a_cancelled_job_saves_first_and_is_submitted_by_hand(cluster, tunerun, wait, wait_for_a_step, project):
    tunerun(*TRAINING, *QUEUED, "train.max_steps=200", "train.global_batch_size=1", "run_dir=cancelled")
    run_dir = project / "cancelled"
    wait_for_a_step("cancelled")
    job = json.loads((run_dir / "job.json").read_text())["id"]
    cluster.ask("scancel", job)
    assert wait("cancelled", "preempted")[-1] == "preempted"
    assert list((run_dir / "checkpoints").glob("step-*"))
    again = cluster.ask("sbatch", "--parsable", str(run_dir / "job.sbatch"))
    assert wait("cancelled", "done")[-1] == "done"
    assert json.loads((run_dir / "job.json").read_text())["id"] == again
    tunerun(*TRAINING, "train.max_steps=200", "train.global_batch_size=1", "run_dir=not-cancelled")
    assert weights(run_dir) == weights(project / "not-cancelled")


def test_ranks_of_a_job_save_together_and_go_on_to_the_same_bits(cluster, tunerun, wait, wait_for_a_step, project):
    ranks = (*TRAINING, "hardware=ddp", "hardware.device=cpu", "hardware.processes=2", "train.max_steps=150",
             "train.global_batch_size=2")  # fmt: skip
    ranks = tuple(item for item in ranks if item != "hardware=cpu")
    tunerun(*ranks, "cluster=slurm", "cluster.cpus=2", "run_dir=ranks")
    run_dir = project / "ranks"
    wait_for_a_step("ranks")
    # What Slurm does before the time limit.
    cluster.ask("scancel", "--batch", "--signal=USR1", json.loads((run_dir / "job.json").read_text())["id"])
    seen = wait("ranks", "done", "failed")
    assert seen[-1] == "done", job_log(run_dir)
    assert [call.exit_code for call in record.read(run_dir).invocations] == [75, 0]
    tunerun(*ranks, "run_dir=ranks-whole")
    assert weights(run_dir) == weights(project / "ranks-whole")


def test_under_srun_with_one_task_it_runs_at_once(tunerun, project):
    out = tunerun(*SHORT, "cluster=slurm", "run_dir=srun", before=("srun", "--ntasks=1"))
    assert "[3/3] train: done after" in out
    assert record.read(project / "srun").status == "done"


def test_under_srun_with_more_tasks_it_is_told_the_right_command(tunerun):
    out = tunerun(*SHORT, "cluster=slurm", "run_dir=many", before=("srun", "--ntasks=2", "--label"), code=2)
    assert "Slurm started it 2 times on 1 node." in out
    assert "srun --nodes=1 --ntasks=1 tunerun +recipe=quickstart" in " ".join(out.replace("0: ", "").split())


def test_what_slurm_refuses_is_told(tunerun):
    out = tunerun(*SHORT, *QUEUED, "cluster.partition=nowhere", "run_dir=refused", code=2)
    assert "invalid partition specified: nowhere" in " ".join(out.split())


def test_a_sweep_is_one_array_and_each_trial_is_queued_again_for_itself(cluster, tunerun, state, project):
    trials = (*TRAINING, *QUEUED, "train.max_steps=100", "train.global_batch_size=1", "stages=[data,train,eval]")
    out = tunerun("-m", *trials, "train.learning_rate=1e-3,1e-2,1e-4", "sweep.jobs=2")
    sweep_dir = Path(out.splitlines()[-1].removeprefix("sweep: "))
    job = re.match(r"job (\d+) is queued with 3 trials, 2 at a time: ", out)[1]
    last = sweep_dir / "2"
    seen = set()
    while not (last / "metrics.jsonl").is_file():
        seen.add(tuple(state(str(sweep_dir / str(number))) for number in range(3)))
        time.sleep(0.2)
    assert ("running", "running", "queued") in seen, seen
    assert all(states.count("running") <= 2 for states in seen), seen
    # The last task has the array's own number too: it alone is to be queued again.
    cluster.ask("scancel", "--batch", "--signal=USR1", f"{job}_2")
    until_ended(sweep_dir, tunerun)
    calls = [[call.exit_code for call in record.read(sweep_dir / str(n)).invocations] for n in range(3)]
    assert calls == [[0], [0], [75, 0]], job_log(last)
    rows = json.loads((sweep_dir / "results.json").read_text())["trials"]
    assert [row["status"] for row in rows] == ["done"] * 3
    assert all("eval_loss" in row["metrics"] for row in rows)
    listed = tunerun("runs", str(sweep_dir))
    assert listed.count(" done ") == 3
    tunerun(*(item for item in trials if item not in QUEUED), "train.learning_rate=1e-4", "run_dir=alone")
    assert weights(last) == weights(project / "alone")
    assert "the best as a recipe" in tunerun("resume", str(sweep_dir))


def until_ended(sweep_dir, tunerun, seconds=400):
    """Waits for the table that the last task writes: nobody asks for it."""
    deadline = time.monotonic() + seconds
    ended = False
    while not ended:
        assert time.monotonic() < deadline, tunerun("sweep", "show", str(sweep_dir))
        rows = json.loads((sweep_dir / "results.json").read_text())["trials"]
        ended = all(row["status"] in ("done", "failed") for row in rows)
        time.sleep(0.5)
