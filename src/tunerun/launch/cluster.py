"""A run as a job for a cluster: Slurm's script and SkyPilot's task. Pure: nothing is submitted here."""

from __future__ import annotations

import os
import re
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tunerun import artifacts
from tunerun.config import overrides
from tunerun.config.checks import size_bytes
from tunerun.config.schema import RunConfig
from tunerun.errors import ExitCode, Problem, UserError
from tunerun.plan import nodes
from tunerun.plan.plan import Plan

SLURM_SCRIPT = "job.sbatch"
SLURM_LOG = f"{artifacts.LOGS}/slurm-%j.log"
ARRAY_LOG = f"{artifacts.LOGS}/slurm-%A_%a.log"
SKYPILOT_TASK = "task.yaml"

_ALLOW, _CONFIG_DIR, _SEARCH_PATH = "--allow", "--config-dir", "hydra.searchpath"
_STORAGE = "/tunerun"
# System, Python environment and CUDA libraries, besides the model and the run.
_SYSTEM_BYTES = 100 * 10**9

_START = """\
# One tunerun on each node: the first runs all stages, the others compute their share of training.
srun --ntasks-per-node=1 --cpus-per-task="${{SLURM_CPUS_PER_TASK:-1}}" --wait=0 \\
    {resume} &
step=$!
"""
_SIGNALS = """\
# {seconds} s before the time limit Slurm sends USR1 to this script: training saves and ends with {preempted}.
{limit}woken=
trap '{near}woken=yes; kill -USR1 "$step"' USR1
# When the job is cancelled or preempted, Slurm itself sends TERM to every process.
trap 'woken=yes' TERM
"""
_WAIT = """\
# A signal ends the wait but not what is waited for.
while
    woken=
    code=0
    wait "$step" || code=$?
    [ "$woken" ]
do :; done
"""
_REQUEUE = """\
if [ "$limit" ] && [ "$code" -eq {preempted} ]; then
    scontrol requeue "{job}"
fi
"""
_TABLE = """\
# Each task writes the table of the sweep as it stands when it ends.
trap '' USR1 TERM
{show} > /dev/null || true
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Typed:
    """What was typed to start a run, or to go on with one."""

    arguments: tuple[str, ...]
    """Overrides."""
    directory: Path
    """Where: relative paths of options and recipes mean the same there."""
    config_dir: Path | None = None
    """Folder of `--config-dir`."""
    allow: frozenset[str] = frozenset()
    """Keys that may differ from those the run was trained with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Array:
    """The trials of a sweep as tasks of one job, each in the folder of its number."""

    sweep_dir: Path
    trials: int
    at_a_time: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """What the scripts of a run and of a sweep differ in."""

    name: str
    about: str
    run_dir: str
    """As the shell reads it."""
    log: Path
    id: str
    """Of the job, or the task, as the shell reads it between quotes."""
    options: str = ""
    """Of `tunerun resume`, as the shell reads them."""
    array: str | None = None
    table: str | None = None
    """Command that writes the sweep's table."""


def slurm_script(plan: Plan, config: RunConfig, typed: Typed) -> str:
    """Renders the batch script of a run; its body is `tunerun resume RUN`, so that it can be submitted again.

    Args:
        plan: Of the run.
        config: What the plan was made from.
        typed: Where the job starts, and with which keys that may differ.
    """
    job = _Job(
        name=plan.name,
        about="The job of a run of tunerun. It may be edited, and submitted again: a run goes on where it stopped.",
        run_dir=shlex.quote(plan.run_dir),
        log=Path(plan.run_dir) / SLURM_LOG,
        id="$SLURM_JOB_ID",
        options="".join(f" {_ALLOW} {shlex.quote(key)}" for key in sorted(typed.allow)),
    )
    return _script(plan, config, typed.directory, job)


def array_script(plan: Plan, config: RunConfig, directory: Path, array: Array) -> str:
    """Renders the batch script of a sweep: an array, of which each task is `tunerun resume` of a trial.

    Args:
        plan: Of any of the trials.
        config: What the plan was made from.
        directory: Where the job starts.
        array: The trials.
    """
    folder = shlex.quote(str(array.sweep_dir))
    job = _Job(
        name=array.sweep_dir.name,
        about="The job of a sweep of tunerun: a task for each trial. It may be edited, and submitted again.",
        run_dir=f'{folder}/"$SLURM_ARRAY_TASK_ID"',
        log=array.sweep_dir / "%a" / ARRAY_LOG,
        # The last task's own number is also the array's, by which all tasks would be queued again.
        id="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID",
        array=f"0-{array.trials - 1}%{array.at_a_time}",
        table=f"{shlex.join(_tunerun(config))} sweep show {folder}",
    )
    return _script(plan, config, directory, job)


def allowed(script: str) -> list[str]:
    """Returns the keys that a batch script of a run allows to differ, as the shell reads them."""
    return re.findall(rf" {_ALLOW} (\S+)", script)


def _tunerun(config: RunConfig) -> list[str]:
    return [config.cluster.python or sys.executable, "-P", "-m", "tunerun"]


def _script(plan: Plan, config: RunConfig, directory: Path, job: _Job) -> str:
    cluster = config.cluster
    options = {
        "job-name": job.name,
        "array": job.array,
        "chdir": str(directory),
        "output": str(job.log),
        "open-mode": "append",
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "time": cluster.time,
        "nodes": str(cluster.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(nodes.cpus(config)),
        "gpus-per-node": str(nodes.gpus(plan)) if nodes.gpus(plan) else None,
        "mem": f"{-(-size_bytes(cluster.memory) // (1 << 20))}M" if cluster.memory is not None else None,
        "signal": f"B:USR1@{cluster.signal_seconds}",
    }
    lines = [f"#SBATCH --{name}={shlex.quote(value)}" for name, value in options.items() if value is not None]
    lines.append("#SBATCH --requeue" if cluster.requeue else "#SBATCH --no-requeue")
    lines += [f"#SBATCH {line}" for line in cluster.extra]
    ended = int(ExitCode.PREEMPTED)
    mark = {"limit": "limit=\n", "near": "limit=near "} if cluster.requeue else {"limit": "", "near": ""}
    texts = [
        "#!/bin/bash",
        f"# {job.about}",
        *lines,
        "",
        "set -e",
        *cluster.setup,
        "",
        _START.format(resume=f"{shlex.join([*_tunerun(config), 'resume'])} {job.run_dir}{job.options}"),
        _SIGNALS.format(seconds=cluster.signal_seconds, preempted=ended, **mark),
        _WAIT,
        *([_TABLE.format(show=job.table)] if job.table is not None else []),
        *([_REQUEUE.format(preempted=ended, job=job.id)] if cluster.requeue else []),
        'exit "$code"',
    ]
    return "\n".join(texts) + "\n"


def files(plan: Plan, config: RunConfig, typed: Typed) -> dict[str, str]:
    """Renders what a cluster is given, by file name; empty where tunerun starts the processes itself.

    Args:
        plan: Of the run.
        config: What the plan was made from.
        typed: The command.

    Raises:
        UserError: The nodes would not find something that the command names.
    """
    if config.cluster.kind == "slurm":
        return {SLURM_SCRIPT: slurm_script(plan, config, typed)}
    if config.cluster.kind == "skypilot":
        return {SKYPILOT_TASK: skypilot_task(plan, config, typed)}
    return {}


def skypilot_task(plan: Plan, config: RunConfig, typed: Typed) -> str:
    """Renders a task of SkyPilot, which runs the typed command again in a copy of the folder it was typed in.

    Each node runs it: SkyPilot's variables (SKYPILOT_NODE_RANK, SKYPILOT_NODE_IPS) tell it which it is and where all
    meet. A managed job (`sky jobs launch`) starts it again after it was stopped, and it goes on from its checkpoint.
    Format: SkyPilot's documentation, "SkyPilot YAML".

    Args:
        plan: Of the run.
        config: What the plan was made from.
        typed: The command; its directory is the project (recipes, options and data), copied to each node.

    Raises:
        UserError: A folder of configs, or a file for DeepSpeed or accelerate, is not in the project, or the nodes would
            look for it elsewhere.
    """
    _check_copied(config, typed)
    cluster = config.cluster
    folder = Path(plan.run_dir)
    run_dir = f"{_STORAGE}/{plan.name}/{folder.name}" if cluster.storage else f"outputs/{plan.name}/{folder.name}"
    arguments = [item for item in typed.arguments if overrides.key_of(item) != "run_dir"]
    task: dict[str, Any] = {
        "name": plan.name,
        "workdir": str(typed.directory),
        "num_nodes": cluster.nodes,
        "resources": _resources(plan, config),
    }
    if cluster.storage is not None and "://" in cluster.storage:
        task["file_mounts"] = {_STORAGE: {"source": cluster.storage, "mode": "MOUNT_CACHED"}}
    elif cluster.storage is not None:
        task["volumes"] = {_STORAGE: cluster.storage}
    task["setup"] = "\n".join(cluster.setup) + "\n"
    task["run"] = shlex.join(["tunerun", *arguments, f"run_dir={run_dir}", *_config_dir(typed)]) + "\n"
    return yaml.dump(task, Dumper=_Blocks, sort_keys=False, allow_unicode=True, width=1000)


def continued(task: str, more: Typed) -> Typed:
    """Returns the command of a task with more overrides, which go before those of the same keys.

    Args:
        task: As `skypilot_task` made it; its setup and resources may have been edited.
        more: What was typed to go on.

    Raises:
        ValueError: The task runs another command.
    """
    content = yaml.safe_load(task)
    program, *words = shlex.split(content["run"])
    folder = Path(words[words.index(_CONFIG_DIR) + 1]) if _CONFIG_DIR in words else None
    before = words[: words.index(_CONFIG_DIR)] if folder is not None else words
    if program != "tunerun" or not all("=" in item or item.startswith("~") for item in before):
        raise ValueError(content["run"])
    changed = {overrides.key_of(item) for item in more.arguments}
    kept = [item for item in before if overrides.key_of(item) not in changed]
    directory = Path(content["workdir"])
    return replace(
        more,
        arguments=(*kept, *more.arguments),
        directory=directory,
        config_dir=None if folder is None else directory / folder,
    )


def _config_dir(typed: Typed) -> list[str]:
    if typed.config_dir is None:
        return []
    return [_CONFIG_DIR, str(typed.config_dir.resolve().relative_to(typed.directory.resolve()))]


def _check_copied(config: RunConfig, typed: Typed) -> None:
    """Refuses what a command names and its nodes would not find: they have a copy of the project, in another place.

    Raises:
        UserError: Names each of these.
    """
    project, hardware = typed.directory.resolve(), config.hardware
    named = {
        "hardware.deepspeed": [hardware.deepspeed] if hardware.deepspeed is not None else [],
        "hardware.accelerate": [hardware.accelerate] if hardware.accelerate is not None else [],
        _SEARCH_PATH: _search_path(typed.arguments),
        # Its path is written anew for the nodes.
        _CONFIG_DIR: [os.path.relpath(typed.config_dir.resolve(), project)] if typed.config_dir is not None else [],
    }
    found = (_lost(key, text, project) for key, texts in named.items() for text in texts)
    problems = [problem for problem in found if problem is not None]
    if problems:
        raise UserError(problems)


def _lost(key: str, text: str, project: Path) -> Problem | None:
    path = (project / text).resolve()
    if not path.is_relative_to(project):
        what = f"{path} is not in {project}, which SkyPilot copies to the nodes."
        return Problem(where=key, what=what, fix="Move it there, or type the command further up.")
    if Path(text).is_absolute():
        what = f"the nodes do not have {path}: SkyPilot copies {project} to another place."
        return Problem(where=key, what=what, fix=f"Name it from there: {path.relative_to(project)}")
    return None


def _search_path(arguments: tuple[str, ...]) -> list[str]:
    """Returns the folders of typed search paths; without a scheme an entry is a folder, too."""
    values = [overrides.key_and_value(item)[1] for item in arguments if overrides.key_of(item) == _SEARCH_PATH]
    entries = [str(entry).rpartition("://") for value in values for entry in (value if isinstance(value, list) else [])]
    return [folder for scheme, _, folder in entries if scheme in ("", "file")]


def _resources(plan: Plan, config: RunConfig) -> dict[str, Any]:
    cluster, count = config.cluster, nodes.gpus(plan)
    resources: dict[str, Any] = {} if cluster.infra is None else {"infra": cluster.infra}
    if count:
        # What has no name there is an obstacle, which `tunerun plan` shows beside this.
        name = nodes.SKYPILOT_GPUS.get(config.hardware.gpu or "", "GPU")
        resources["accelerators"] = f"{name}:{count}"
    resources["cpus"] = f"{nodes.cpus(config)}+"
    if cluster.memory is not None:
        resources["memory"] = f"{-(-size_bytes(cluster.memory) // 10**9)}+"
    disk = 0 if plan.estimate is None else plan.estimate.disk.download_bytes + plan.estimate.disk.run_bytes
    resources["disk_size"] = -(-(disk + _SYSTEM_BYTES) // 10**9)
    if cluster.spot:
        resources["use_spot"] = True
    resources["job_recovery"] = {"recover_on_exit_codes": [int(ExitCode.PREEMPTED)]}
    return resources


class _Blocks(yaml.SafeDumper):
    """Writes texts of several lines as they are read, below `|`."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Blocks.add_representer(str, _text)
