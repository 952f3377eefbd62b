"""What started this process: a shell, Slurm, SkyPilot, or a launcher that tunerun does not go with.

Reads variables only.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunerun.config.schema import RunConfig
from tunerun.errors import Problem

_ARRAY, _TASK = "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"
_FIRST_PORT = 20000
_PORTS = 10000


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
    command = shlex.join(["tunerun", *typed])
    if found.job is None and found.nodes != config.cluster.nodes:
        what = f"is {config.cluster.nodes}, and SkyPilot started it on {found.nodes}."
        return [Problem(where="cluster.nodes", what=what, fix=f"Type: {command} cluster.nodes={found.nodes}")]
    if found.tasks != found.nodes:
        what = f"Slurm started it {found.tasks} times on {found.nodes} node{'s' * (found.nodes > 1)}."
        fix = f"tunerun starts the other processes itself: srun --ntasks-per-node=1 {command}"
        return [Problem(where="srun", what=what, fix=fix)]
    if config.cluster.kind == "local" and found.nodes > 1:
        what = f"Slurm started it on {found.nodes} nodes, and cluster=local is for one."
        fix = f"Type: srun --ntasks-per-node=1 {command} cluster=slurm cluster.nodes={found.nodes}"
        return [Problem(where="cluster.kind", what=what, fix=fix)]
    if config.cluster.kind == "slurm" and found.nodes != config.cluster.nodes:
        what = f"is {config.cluster.nodes}, and Slurm started it on {found.nodes}."
        fix = f"Type: srun --nodes={config.cluster.nodes} --ntasks-per-node=1 {command}"
        return [Problem(where="cluster.nodes", what=what, fix=fix)]
    return []


def _launched(config: RunConfig, env: Mapping[str, str], typed: Sequence[str]) -> Problem:
    """Says what to type instead of torchrun, or of accelerate's launcher."""
    world = int(env.get("WORLD_SIZE", "1"))
    processes = int(env.get("LOCAL_WORLD_SIZE", str(world)))
    wanted = [*typed]
    if processes > 1 and config.hardware.strategy == "single":
        wanted.append("hardware=ddp")
    if config.hardware.processes != processes:
        wanted.append(f"hardware.processes={processes}")
    if world > processes and config.cluster.kind == "local":
        wanted += ["cluster=multi_node", f"cluster.nodes={world // processes}"]
    what = f"this is one of {world} processes that torchrun started, and tunerun starts its processes itself."
    return Problem(where="torchrun", what=what, fix=f"Type: {shlex.join(['tunerun', *wanted])}")
