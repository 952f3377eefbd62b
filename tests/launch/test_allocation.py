"""What a process reads from the variables that its starter set."""

from __future__ import annotations

import pytest

from tests.plan.test_build import config
from tunerun.launch import allocation

BATCH = {"SLURM_JOB_ID": "123", "SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "gpu[03-05]"}
STEP = {**BATCH, "SLURM_NODEID": "2", "SLURM_STEP_NUM_NODES": "3", "SLURM_STEP_NUM_TASKS": "3",
        "SLURM_STEP_NODELIST": "gpu[03-05]"}  # fmt: skip
SLURM = {"cluster__kind": "slurm", "cluster__nodes": 3, "hardware__strategy": "ddp", "hardware__processes": 2}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "h"}
TYPED = ("+recipe=quickstart",)


def said(env, **changes):
    return [str(problem) for problem in allocation.problems(config(**changes), env, TYPED)]


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[03-05,9],login", "gpu03"),
        ("gpu[7]", "gpu7"),
        ("rack[2-3]n[01,04]", "rack2n01"),
        ("a-b.c,d", "a-b.c"),
    ],
)
def test_the_first_host_of_a_list(hosts, first):
    assert allocation.first_host(hosts) == first


def test_a_process_of_srun_knows_its_place():
    found = allocation.allocation(STEP)
    assert (found.job, found.node, found.nodes, found.tasks, found.leader) == ("123", 2, 3, 3, "gpu03")
    assert found.port == 20246


def test_a_task_of_an_array_is_named_as_slurm_names_it_and_meets_where_no_other_task_does():
    env = {**STEP, "SLURM_JOB_ID": "130", "SLURM_ARRAY_JOB_ID": "123", "SLURM_ARRAY_TASK_ID": "6"}
    found = allocation.allocation(env)
    assert (found.job, found.port) == ("123_6", 20260)


def test_jobs_that_share_a_node_meet_on_different_ports():
    ports = {allocation.allocation({**STEP, "SLURM_JOB_ID": str(job)}).port for job in range(77_000, 77_100)}
    assert len(ports | {port + 1 for port in ports}) == 200
    assert all(1024 < port < 32768 for port in ports)


def test_a_node_of_skypilot_knows_its_place():
    env = {"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5"}
    found = allocation.allocation(env)
    assert (found.job, found.node, found.nodes, found.leader, found.port) == (None, 1, 2, "10.0.0.4", 20000)
    assert said(env, **{**SLURM, "cluster__kind": "skypilot", "cluster__nodes": 2}) == []
    (problem,) = said(env)
    assert problem.startswith("cluster.nodes: is 1, and SkyPilot started it on 2.")


@pytest.mark.parametrize("env", [{}, {"SLURM_JOB_ID": "123", "SLURM_JOB_NODELIST": "gpu1"}])
def test_a_shell_is_no_part_of_a_job(env):
    assert allocation.allocation(env) is None
    assert said(env) == []


def test_one_process_on_each_node_is_right():
    assert said(STEP, **SLURM) == []
    assert said({**BATCH}, **{**SLURM, "cluster__nodes": 1}) == []
    assert said({**BATCH}) == []


@pytest.mark.parametrize(
    ("env", "changes", "where", "fix"),
    [
        ({**STEP, "SLURM_STEP_NUM_TASKS": "24"}, SLURM, "srun", "srun --ntasks-per-node=1 tunerun +recipe=quickstart"),
        (STEP, {}, "cluster.kind", "srun --ntasks-per-node=1 tunerun +recipe=quickstart cluster=slurm cluster.nodes=3"),
        (BATCH, SLURM, "cluster.nodes", "srun --nodes=3 --ntasks-per-node=1 tunerun +recipe=quickstart"),
        (
            TORCHRUN,
            {},
            "torchrun",
            "tunerun +recipe=quickstart hardware=ddp hardware.processes=2 cluster=multi_node cluster.nodes=2",
        ),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h"},
            {"hardware__strategy": "zero2", "hardware__processes": 2},
            "torchrun",
            "tunerun +recipe=quickstart",
        ),
    ],
)
def test_a_wrong_start_is_told_the_right_command(env, changes, where, fix):
    (problem,) = said(env, **changes)
    assert problem.startswith(f"{where}: ")
    assert problem.endswith(fix)
