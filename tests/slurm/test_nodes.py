"""Runs that take two nodes of a real Slurm cluster, each with one process; the nodes are two slurmd on this machine."""

from __future__ import annotations

import json

import pytest

from tests.slurm.test_slurm import TRAINING, job_log, losses, weights
from tunerun.run import record

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(1500)]

SPREAD = (
    *(item for item in TRAINING if item != "hardware=cpu"), "hardware=ddp", "hardware.device=cpu",
    "hardware.processes=1", "train.global_batch_size=2",
)  # fmt: skip
QUEUED = ("cluster=slurm", "cluster.nodes=2", "cluster.cpus=1")


@pytest.fixture(scope="module")
def nodes():
    return 2


def test_two_nodes_come_to_what_one_process_comes_to(tunerun, wait, project):
    tunerun(*SPREAD, *QUEUED, "train.max_steps=10", "run_dir=two")
    assert wait("two", "done", "failed")[-1] == "done", job_log(project / "two")
    assert "node 1 of 2; the run is in" in job_log(project / "two")
    assert (project / "two/logs/train-rank1.log").is_file()
    tunerun(*TRAINING, "train.global_batch_size=2", "train.max_steps=10", "run_dir=one")
    one, two = ([loss for _, loss in losses(project / name)] for name in ("one", "two"))
    assert two == pytest.approx(one, abs=1e-5)


def test_two_nodes_save_before_the_time_limit_and_go_on_to_the_same_bits(
    cluster, tunerun, wait, wait_for_a_step, project
):
    long = (*SPREAD, *QUEUED, "train.max_steps=150")
    tunerun(*long, "run_dir=whole")
    assert wait("whole", "done", "failed")[-1] == "done", job_log(project / "whole")
    tunerun(*long, "run_dir=parts")
    run_dir = project / "parts"
    wait_for_a_step("parts")
    # What Slurm does before the time limit.
    cluster.ask("scancel", "--batch", "--signal=USR1", json.loads((run_dir / "job.json").read_text())["id"])
    assert wait("parts", "done", "failed")[-1] == "done", job_log(run_dir)
    assert [call.exit_code for call in record.read(run_dir).invocations] == [75, 0]
    assert losses(run_dir) == losses(project / "whole")
    assert weights(run_dir) == weights(project / "whole")
