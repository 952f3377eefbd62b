"""What a process reads from the variables that its starter set."""

from __future__ import annotations

import shlex

import pytest

from tests.plan.test_build import config
from tunerun.config import resolve
from tunerun.config.typed import plain
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


STARTED = {**STEP, "SLURM_STEP_NUM_TASKS": "24"}
ONE_TASK = {**STEP, "SLURM_NODEID": "0", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1"}
IN_JOB = {**TORCHRUN, "SLURM_JOB_ID": "123"}
SKY = {"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "3", "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5\n10.0.0.6"}
BY_SLURM = ("hardware.strategy=ddp", "hardware.processes=2", "cluster=slurm", "cluster.nodes=3",
            "train.global_batch_size=12")  # fmt: skip
EACH, ALONE = "srun --ntasks-per-node=1", "srun --nodes=1 --ntasks=1"
SPREAD = "cluster.kind=slurm cluster.nodes=3 hardware.strategy=ddp"
TWO = "hardware.strategy=ddp hardware.processes=2 cluster.nodes=2"
TWO_TWO = f"{TWO} cluster.kind=multi_node cluster.rendezvous=h:29400"
MEETING = "cluster.kind=multi_node cluster.rendezvous=10.0.0.4:29400"


@pytest.mark.parametrize(
    ("env", "typed", "where", "fix", "then"),
    [
        (STARTED, BY_SLURM, "srun", "srun --nodes=3 --ntasks-per-node=1 tunerun {}", STEP),
        (STARTED, (), "srun", f"{EACH} tunerun {{}} {SPREAD}", STEP),
        (STARTED, ("-m", "seed=1"), "srun", f"{ALONE} tunerun {{}}", ONE_TASK),
        (STEP, (), "cluster.kind", f"{EACH} tunerun {{}} {SPREAD}", STEP),
        (STEP, ("hardware=cpu",), "cluster.kind", f"{EACH} tunerun {{}} {SPREAD}", STEP),
        (STEP, ("stages=[data]",), "cluster.kind", f"{ALONE} tunerun {{}}", ONE_TASK),
        (BATCH, BY_SLURM, "cluster.nodes", "srun --nodes=3 --ntasks-per-node=1 tunerun {}", STEP),
        (TORCHRUN, (), "torchrun", f"tunerun {{}} {TWO_TWO}", {}),
        (TORCHRUN, ("hardware=cpu",), "torchrun", f"tunerun {{}} {TWO_TWO}", {}),
        (TORCHRUN, ("stages=[data]",), "torchrun", "tunerun {}", {}),
        (
            TORCHRUN,
            ("-m", "hardware.processes=1"),
            "torchrun",
            "tunerun +recipe=quickstart -m hardware.strategy=ddp hardware.processes=2",
            {},
        ),
        (
            IN_JOB,
            (),
            "torchrun",
            f"srun --nodes=2 --ntasks-per-node=1 tunerun {{}} {TWO} cluster.kind=slurm",
            {**STEP, "SLURM_NODEID": "1", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "2"},
        ),
        (
            {**TORCHRUN, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"},
            (),
            "torchrun",
            f"tunerun {{}} {TWO_TWO}".replace("processes=2", "processes=1"),
            {},
        ),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h"},
            ("hardware=zero2", "hardware.processes=2"),
            "torchrun",
            "tunerun {}",
            {},
        ),
        (
            {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "h"},
            (),
            "torchrun",
            "tunerun {} hardware.strategy=ddp train.global_batch_size=9 hardware.processes=3",
            {},
        ),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "h"}, (), "torchrun", "tunerun {}", {}),
        (
            SKY,
            (),
            "cluster.nodes",
            f"tunerun {{}} cluster.nodes=3 hardware.strategy=ddp {MEETING}",
            SKY,
        ),
    ],
)
def test_a_wrong_start_is_told_the_right_command(env, typed, where, fix, then):
    typed = (*TYPED, *typed)
    config = resolved(typed)
    (problem,) = allocation.problems(config, env, typed)
    assert problem.where == where
    command = problem.fix.partition("Type: ")[2]
    assert command == fix.format(shlex.join(typed))
    right = shlex.split(command)
    right = right[right.index("tunerun") + 1 :]
    assert allocation.problems(resolved(right), then, right) == []


def resolved(typed):
    return resolve.resolve([item for item in typed if item != "-m"]).config


def test_a_run_that_is_resumed_is_told_keys_which_it_takes():
    typed = ("resume", "outputs/x", "train.epochs=3")
    config = resolved(TYPED)
    for env in (TORCHRUN, STEP):
        (problem,) = allocation.problems(config, env, typed)
        command = shlex.split(problem.fix.partition("Type: ")[2])
        words = command[command.index("tunerun") + 1 :]
        assert words[:3] == list(typed)
        again = resolve.rebuild(plain(config), words[2:])
        assert allocation.problems(again, {} if env is TORCHRUN else env, words) == []
        assert again.cluster.nodes > 1


def test_what_a_record_or_a_file_says_of_processes_is_not_typed_beside_it():
    for typed in (("replay", "outputs/x"), (*TYPED, "hardware.accelerate=mine.yaml")):
        (problem,) = allocation.problems(resolved(TYPED), TORCHRUN, typed)
        assert problem.fix == f"Type: {shlex.join(['tunerun', *typed])}"
        (problem,) = allocation.problems(resolved(TYPED), STEP, typed)
        assert problem.fix == f"Type: srun --nodes=1 --ntasks=1 {shlex.join(['tunerun', *typed])}"
        (problem,) = allocation.problems(resolved(TYPED), SKY, typed)
        assert problem.fix == "Write num_nodes: 1 into the task."


def test_a_sweep_on_several_machines_of_skypilot_is_told_to_take_one():
    (problem,) = allocation.problems(resolved(TYPED), SKY, (*TYPED, "-m", "seed=1,2"))
    assert problem.fix == "A sweep is for one machine: write num_nodes: 1 into the task."
