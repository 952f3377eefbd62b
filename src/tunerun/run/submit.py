"""Hands runs to a cluster instead of running them: prepares their directories and queues a job that resumes them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

from tunerun import artifacts, redact
from tunerun.config import typed
from tunerun.config.credentials import secrets_of
from tunerun.config.schema import RunConfig
from tunerun.errors import ExitCode, Problem, UserError
from tunerun.launch import cluster, slurm
from tunerun.launch.cluster import Typed
from tunerun.plan import plan as plans
from tunerun.plan.plan import Plan
from tunerun.run import drift, record, rundir, runner
from tunerun.run import job as jobs
from tunerun.run.job import Job
from tunerun.run.record import RunStatus
from tunerun.run.summary import short


def submit(plan: Plan, config: RunConfig, typed: Typed) -> ExitCode:
    """Queues a run with Slurm, or writes the task that SkyPilot is to be given.

    Writes config.yaml, plan.json, run.json and the cluster's file, and job.json when a job is queued. A file that
    belongs to the same config is submitted as it stands, with what was changed in it by hand.

    Args:
        plan: Of the run.
        config: What the plan was made from.
        typed: The command.

    Raises:
        UserError: The run is queued or at work already, what it was trained with changed, its config holds a secret,
            or Slurm refused the job.
    """
    run_dir = Path(plan.run_dir)
    refuse_secrets(config)
    _refuse_queued(run_dir)
    ((name, text),) = cluster.files(plan, config, typed).items()
    script = run_dir / name
    if _prepare(plan, config, typed.allow) or not script.is_file() or _allows_other(script, text):
        artifacts.write_text(script, text)
    told = _queue(run_dir, script) if config.cluster.kind == "slurm" else _tell(script)
    print("\n".join([*told, f"run: {run_dir}"]))
    return ExitCode.DONE


def continued(run_dir: Path, more: Typed) -> Typed:
    """Returns the whole command of a run that SkyPilot is to go on with.

    Args:
        run_dir: Of the run.
        more: What was typed to go on.

    Raises:
        UserError: The run has no task of SkyPilot, or it runs another command, or `--allow` is typed.
    """
    path = run_dir / cluster.SKYPILOT_TASK
    if more.allow:
        what = "a task of SkyPilot types the run's first command again, which has no such option."
        raise UserError(Problem(where="--allow", what=what, fix="Choose another run_dir for what is to differ."))
    if not path.is_file():
        what = f"there is no {cluster.SKYPILOT_TASK}, so that the command its nodes are to type is not known."
        fix = "Type the run's first command again, with cluster=skypilot and without run_dir."
        raise UserError(Problem(where=str(run_dir), what=what, fix=fix))
    try:
        return cluster.continued(path.read_text(encoding="utf-8"), more)
    except (ValueError, LookupError, TypeError, yaml.YAMLError) as error:
        fix = f"Start it as it is (sky jobs launch {short(path)}), or begin a new run."
        raise UserError(Problem(where=str(path), what="its command was edited by hand.", fix=fix)) from error


def _allows_other(script: Path, text: str) -> bool:
    return cluster.allowed(script.read_text(encoding="utf-8")) != cluster.allowed(text)


def submit_array(trials: Mapping[int, tuple[Plan, RunConfig]], script: Path, text: str, at_a_time: int) -> str:
    """Queues trials of a sweep as one job, a task for each.

    Args:
        trials: Plan and config by number, none of them queued or at work.
        script: Of the whole sweep; one that is there is submitted as it stands while no trial's config changes.
        text: What it is made as.
        at_a_time: Trials that run at a time.

    Returns:
        The job's id.

    Raises:
        UserError: Slurm refused the job, or what a trial was trained with changed.
    """
    changed = [_prepare(plan, config, frozenset()) for plan, config in trials.values()]
    if any(changed) or not script.is_file():
        artifacts.write_text(script, text)
    folders = {number: Path(plan.run_dir) for number, (plan, _) in trials.items()}
    job = _submit(script, folders.values(), f"--array={_ranges(sorted(trials))}%{at_a_time}")
    for number, folder in folders.items():
        jobs.write(folder, Job(id=f"{job}_{number}", submitted=record.now()))
    return job


def _ranges(numbers: Sequence[int]) -> str:
    """Writes numbers in order as Slurm does: `0-2,5`."""
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    pairs = zip(starts, ends, strict=True)
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in pairs)


def _submit(script: Path, run_dirs: Iterable[Path], *options: str) -> str:
    # Nobody holds the locks: the job may start before sbatch returns.
    try:
        return slurm.submit(script, *options)
    except UserError:
        for folder in run_dirs:
            record.write(folder, dataclasses.replace(record.read(folder), status="failed"))
        raise


def _queue(run_dir: Path, script: Path) -> list[str]:
    """Queues a script; returns what to tell the user."""
    made = Job(id=_submit(script, [run_dir]), submitted=record.now())
    jobs.write(run_dir, made)
    run, log = short(run_dir), short(run_dir / cluster.SLURM_LOG.replace("%j", made.id))
    return [
        f"job {made.id} is queued: {short(script)}",
        f"watch:  tunerun show {run}\n        tail -F {log}\n        squeue --job={made.id}",
        f"stop:   scancel {made.id}   (training saves first; go on: tunerun resume {run})",
    ]


def _tell(task: Path) -> list[str]:
    return [
        f"written: {short(task)}",
        f"start:  sky jobs launch {short(task)}   (starts it again when the machine is taken away)",
        f"        sky launch {short(task)}",
    ]


def _refuse_queued(run_dir: Path) -> None:
    job = jobs.read(run_dir)
    found = None if job is None else slurm.states([job.id]).get(job.id)
    if job is not None and found in jobs.ALIVE:
        what = f"job {job.id} of this run is {found}."
        raise UserError(Problem(where=str(run_dir), what=what, fix=f"Wait for it, or end it: scancel {job.id}"))


def _prepare(plan: Plan, config: RunConfig, allow: frozenset[str]) -> bool:
    """Writes what the job will find in the run directory; says whether the config is another one than before."""
    run_dir, secrets = Path(plan.run_dir), secrets_of(config, os.environ)
    with rundir.locked(run_dir):
        kept = runner.open_record(plan, config, run_dir)
        # The job would refuse it too, when the config is written already.
        drift.refuse(drift.widened(plan, kept), run_dir, kept, allow)
        path = run_dir / artifacts.CONFIG
        before = path.read_text(encoding="utf-8") if path.is_file() else None
        rundir.write_config(run_dir, config, secrets)
        artifacts.write_json(run_dir / artifacts.PLAN, plans.to_json(plan))
        (run_dir / artifacts.LOGS).mkdir(exist_ok=True)
        status: RunStatus = "submitted" if config.cluster.kind == "slurm" else "prepared"
        record.write(run_dir, dataclasses.replace(kept, status=status, finished=None))
    return before != path.read_text(encoding="utf-8")


def refuse_secrets(config: RunConfig) -> None:
    """Refuses a config that would write a secret into its files or its job.

    Raises:
        UserError: Names each key that holds one.
    """
    secrets = secrets_of(config, os.environ)
    found = redact.problems(typed.flatten(typed.plain(config)), secrets) + _secret_lines(config, secrets)
    if found:
        raise UserError(found)


def _secret_lines(config: RunConfig, secrets: tuple[str, ...]) -> list[Problem]:
    """Finds secrets in what is written into the job as it stands."""
    lines = {
        f"cluster.{key}[{index}]": line
        for key, texts in (("setup", config.cluster.setup), ("extra", config.cluster.extra))
        for index, line in enumerate(texts)
    }
    fix = "Export it where you submit: the job gets the variables of your shell."
    return [
        Problem(where=key, what="holds a secret, which would be written into the job.", fix=fix)
        for key, line in lines.items()
        # `--export=WANDB_API_KEY=...` holds an assignment within an option.
        if any(redact.text(text, secrets) != text for text in (line, line.partition("=")[2]))
    ]
