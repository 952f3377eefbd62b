"""What started this process: a shell, Slurm, SkyPilot, or a launcher that tunerun does not go with.

Reads variables only.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunerun.config import overrides
from tunerun.config.schema import RunConfig
from tunerun.errors import Problem

_ARRAY, _TASK = "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"
_FIRST_PORT = 20000
_PORTS = 10000
_RENDEZVOUS_PORT = 29400


@dataclass(frozen=True, kw_only=True, slots=True)
class Allocation:
    """This process's place among those that a cluster started for one command."""

    job: str | None
    """Id of Slurm's job as its commands show it, `42_3` for a task of an array; None under SkyPilot."""
    number: int | None
    """What Slurm counts the job by: a number of its own for each task of an array."""
    node: int
    """Number of this node among the command's, from 0; the first is the leader."""
    nodes: int
    """How many nodes the command runs on."""
    tasks: int
    """How many processes were started for the command, over all nodes."""
    leader: str
    """Host name or address of the first node."""

    @property
    def port(self) -> int:
        """Where the nodes meet on the leader: another one for each job of Slurm, since jobs may share a node."""
        # Ranks meet on the port after it.
        return _FIRST_PORT + (0 if self.number is None else 2 * (self.number % (_PORTS // 2)))


def allocation(env: Mapping[str, str]) -> Allocation | None:
    """Reads what a cluster tells its processes; None outside a job, and in the shell that `salloc` opens."""
    if "SKYPILOT_NODE_RANK" in env:
        nodes = int(env["SKYPILOT_NUM_NODES"])
        leader = env["SKYPILOT_NODE_IPS"].split()[0]
        node = int(env["SKYPILOT_NODE_RANK"])
        return Allocation(job=None, number=None, node=node, nodes=nodes, tasks=nodes, leader=leader)
    if "SLURM_JOB_ID" not in env or "SLURM_PROCID" not in env:
        return None
    # The batch script itself is one process, whatever its job holds.
    in_step = "SLURM_STEP_NUM_TASKS" in env
    return Allocation(
        job=f"{env[_ARRAY]}_{env[_TASK]}" if _ARRAY in env else env["SLURM_JOB_ID"],
        number=int(env["SLURM_JOB_ID"]),
        node=int(env["SLURM_NODEID"]),
        nodes=int(env["SLURM_STEP_NUM_NODES"]) if in_step else 1,
        tasks=int(env["SLURM_STEP_NUM_TASKS"]) if in_step else 1,
        leader=first_host(env["SLURM_STEP_NODELIST"] if in_step else env["SLURM_JOB_NODELIST"]),
    )


def first_host(hosts: str) -> str:
    """Returns the first name of a list as Slurm writes it: `gpu[03-05,9],login` gives `gpu03`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", hosts)
    assert first is not None
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])


def problems(config: RunConfig, env: Mapping[str, str], typed: Sequence[str]) -> list[Problem]:
    """Finds what is wrong with how this process was started.

    Args:
        config: What it is to do.
        env: Its variables.
        typed: Its arguments, for the command that is right.
    """
    if "TORCHELASTIC_RUN_ID" in env or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= env.keys():
        return [_launched(config, env, typed)]
    found = allocation(env)
    if found is None:
        return []
    return _under_slurm(config, found, typed) if found.job is not None else _under_skypilot(config, found, typed)


def _under_skypilot(config: RunConfig, found: Allocation, typed: Sequence[str]) -> list[Problem]:
    cluster = config.cluster
    if found.nodes == cluster.nodes:
        return []
    changes: dict[str, object] = {"cluster.nodes": found.nodes, **_shared(config, found.nodes)}
    if cluster.kind == "local":
        changes |= _meeting_at(found.leader)
    fix = f"Type: {_command(typed, changes)}"
    if found.nodes > 1 and _is_sweep(typed):
        fix = "A sweep is for one machine: write num_nodes: 1 into the task."
    if _is_told_elsewhere(typed):
        fix = f"Write num_nodes: {cluster.nodes} into the task."
    what = f"is {cluster.nodes}, and SkyPilot started it on {found.nodes}."
    return [Problem(where="cluster.nodes", what=what, fix=fix)]


def _under_slurm(config: RunConfig, found: Allocation, typed: Sequence[str]) -> list[Problem]:
    cluster = config.cluster
    alone = _is_sweep(typed) or "train" not in config.stages
    srun, changes = ["srun", "--nodes=1", "--ntasks=1"], dict[str, object]()
    decided = _is_told_elsewhere(typed)
    if not alone and not decided and cluster.kind == "local" and found.nodes > 1:
        srun = ["srun", "--ntasks-per-node=1"]
        changes = {"cluster.kind": "slurm", "cluster.nodes": found.nodes, **_shared(config, found.nodes)}
    elif not alone and cluster.nodes > 1:
        srun = ["srun", f"--nodes={cluster.nodes}", "--ntasks-per-node=1"]
    fix = f"Type: {shlex.join(srun)} {_command(typed, changes)}"
    if found.tasks != found.nodes:
        what = f"Slurm started it {found.tasks} times on {found.nodes} node{'s' * (found.nodes > 1)}."
        return [Problem(where="srun", what=f"{what} tunerun starts the other processes itself.", fix=fix)]
    if cluster.kind == "local" and found.nodes > 1:
        what = f"Slurm started it on {found.nodes} nodes, and cluster=local is for one."
        return [Problem(where="cluster.kind", what=what, fix=fix)]
    if cluster.kind == "slurm" and found.nodes != cluster.nodes and not (alone and found.nodes == 1):
        what = f"is {cluster.nodes}, and Slurm started it on {found.nodes}."
        return [Problem(where="cluster.nodes", what=what, fix=fix)]
    return []


def _launched(config: RunConfig, env: Mapping[str, str], typed: Sequence[str]) -> Problem:
    """Says what to type instead of torchrun, or of accelerate's launcher."""
    world = int(env.get("WORLD_SIZE", "1"))
    processes = int(env.get("LOCAL_WORLD_SIZE", str(world)))
    nodes, cluster, command = world // processes, config.cluster, ""
    changes: dict[str, object] = {}
    if world > 1 and "train" in config.stages and not _is_told_elsewhere(typed):
        changes |= _shared(config, world) | _divided(config, world)
        if config.hardware.processes != processes:
            changes["hardware.processes"] = processes
        if nodes > 1 and not _is_sweep(typed):
            in_job = "SLURM_JOB_ID" in env and cluster.kind in ("local", "slurm")
            command = f"srun --nodes={nodes} --ntasks-per-node=1 " if in_job else ""
            if cluster.nodes != nodes:
                changes["cluster.nodes"] = nodes
            if cluster.kind == "local":
                changes |= {"cluster.kind": "slurm"} if in_job else _meeting_at(env.get("MASTER_ADDR", "HOST"))
    what = f"this is one of {world} processes that torchrun started, and tunerun starts its processes itself."
    return Problem(where="torchrun", what=what, fix=f"Type: {command}{_command(typed, changes)}")


def _shared(config: RunConfig, processes: int) -> dict[str, object]:
    """Returns what lets several processes share the model, where the config has one alone."""
    return {"hardware.strategy": "ddp"} if processes > 1 and config.hardware.strategy == "single" else {}


def _divided(config: RunConfig, processes: int) -> dict[str, object]:
    """Returns a global batch that can be divided among processes, where the config's cannot."""
    unit = (config.train.micro_batch_size or 1) * processes
    batch = config.train.global_batch_size
    return {"train.global_batch_size": -(-batch // unit) * unit} if batch % unit else {}


def _meeting_at(host: str) -> dict[str, object]:
    return {"cluster.kind": "multi_node", "cluster.rendezvous": f"{host}:{_RENDEZVOUS_PORT}"}


def _is_sweep(typed: Sequence[str]) -> bool:
    return bool({"-m", "--multirun"} & set(typed))


def _is_told_elsewhere(typed: Sequence[str]) -> bool:
    """Says whether a record or a file of the user's says how many processes there are."""
    return "replay" in typed[:1] or any(overrides.key_of(item) == "hardware.accelerate" for item in typed)


def _command(typed: Sequence[str], changes: Mapping[str, object]) -> str:
    """Returns the typed command with some keys changed: `resume` takes keys and no groups."""
    kept = [item for item in typed if "=" not in item or overrides.key_of(item) not in changes]
    return shlex.join(["tunerun", *kept, *(f"{key}={value}" for key, value in changes.items())])
