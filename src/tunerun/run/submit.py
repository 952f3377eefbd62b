"""Hands a run to a cluster instead of running it: prepares its directory and queues a job that resumes it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from tunerun import artifacts, redact
from tunerun.config import typed
from tunerun.config.credentials import secrets_of
from tunerun.config.schema import RunConfig
from tunerun.errors import ExitCode, Problem, UserError
from tunerun.launch import cluster, slurm
from tunerun.plan import plan as plans
from tunerun.plan.plan import Plan
from tunerun.run import job as jobs
from tunerun.run import record, rundir, runner
from tunerun.run.job import Job
from tunerun.run.record import RunStatus
from tunerun.run.summary import short


def submit(plan: Plan, config: RunConfig, overrides: Sequence[str]) -> ExitCode:
    """Queues a run with Slurm, or writes the task that SkyPilot is to be given.

    Writes config.yaml, plan.json, run.json and the cluster's file, and job.json when a job is queued. A file that
    belongs to the same config is submitted as it stands, with what was changed in it by hand.

    Args:
        plan: Of the run.
        config: What the plan was made from.
        overrides: What was typed.

    Raises:
        UserError: The run is queued or at work already, its config holds a secret, or Slurm refused the job.
    """
    run_dir = Path(plan.run_dir)
    _refuse_secrets(config)
    _refuse_queued(run_dir)
    ((name, text),) = cluster.files(plan, config, Path.cwd(), overrides).items()
    _prepare(plan, config, run_dir, name, text)
    told = _queue(run_dir, run_dir / name) if config.cluster.kind == "slurm" else _tell(run_dir / name)
    print("\n".join([*told, f"run: {run_dir}"]))
    return ExitCode.DONE


def _queue(run_dir: Path, script: Path) -> list[str]:
    """Queues a script; returns what to tell the user."""
    # Nobody holds the lock: the job may start before sbatch returns.
    try:
        made = Job(id=slurm.submit(script), submitted=record.now())
    except UserError:
        record.write(run_dir, dataclasses.replace(record.read(run_dir), status="failed"))
        raise
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


def _prepare(plan: Plan, config: RunConfig, run_dir: Path, name: str, text: str) -> None:
    """Writes what the job will find in the run directory."""
    secrets = secrets_of(config, os.environ)
    with rundir.locked(run_dir):
        kept = runner.open_record(plan, config, run_dir)
        path = run_dir / artifacts.CONFIG
        before = path.read_text(encoding="utf-8") if path.is_file() else None
        rundir.write_config(run_dir, config, secrets)
        if before != path.read_text(encoding="utf-8") or not (run_dir / name).is_file():
            artifacts.write_text(run_dir / name, text)
        artifacts.write_json(run_dir / artifacts.PLAN, plans.to_json(plan))
        (run_dir / artifacts.LOGS).mkdir(exist_ok=True)
        status: RunStatus = "submitted" if config.cluster.kind == "slurm" else "prepared"
        record.write(run_dir, dataclasses.replace(kept, status=status, finished=None))


def _refuse_secrets(config: RunConfig) -> None:
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
