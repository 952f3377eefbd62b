"""The trials of a sweep as one array job of Slurm: queues those that are not done, and reads what came of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tunerun import artifacts
from tunerun.commands.trial import Entry
from tunerun.config.schema import SweepConfig
from tunerun.errors import ExitCode, Problem, UserError
from tunerun.launch import cluster
from tunerun.run import job as jobs
from tunerun.run import record, rundir, submit
from tunerun.run.summary import short
from tunerun.sweep import importance, outcomes, table
from tunerun.sweep.table import Table
from tunerun.sweep.trials import Outcome

_ENDED = ("done", "pruned")
_ALIVE = ("queued", "requeued", "running")


def script(sweep_dir: Path, entries: Mapping[int, Entry], at_a_time: int) -> str:
    """Renders the job of a sweep.

    Args:
        sweep_dir: Of the sweep.
        entries: All its trials, by number.
        at_a_time: Trials that run at a time.

    Raises:
        UserError: The trials ask for different nodes, or one holds a secret.
    """
    array = cluster.Array(sweep_dir=sweep_dir, trials=len(entries), at_a_time=at_a_time)
    prepared = [entry.whole for entry in entries.values()]
    for item in prepared:
        submit.refuse_secrets(item.config)
    texts = {cluster.array_script(item.plan, item.config, Path.cwd(), array) for item in prepared}
    if len(texts) > 1 or not all(item.is_queued for item in prepared):
        what = "the trials ask for different nodes, and the tasks of one job are equal."
        fix = "Vary cluster.* and hardware.* in sweeps of their own."
        raise UserError(Problem(where="cluster", what=what, fix=fix))
    (text,) = texts
    return text


def queue(sweep_dir: Path, entries: Mapping[int, Entry], sweep: SweepConfig) -> ExitCode:
    """Queues the trials that are neither done nor queued, or, when all are done, the last stages of the best.

    Writes the sweep's tables first: each task of the job writes them again.

    Args:
        sweep_dir: Of the sweep.
        entries: All its trials, by number.
        sweep: How trials are compared, and how many run at a time.

    Raises:
        UserError: Slurm refused the job.
    """
    found = _written(sweep_dir, {number: entry.trial.parameters for number, entry in entries.items()}, sweep.metric)
    rows = found.rows
    left = {row.trial: entries[row.trial].prepared for row in rows if row.status not in (*_ENDED, *_ALIVE)}
    alive = sum(row.status in _ALIVE for row in rows)
    if not left and not alive:
        left = {entry.trial.number: entry.whole for entry in _unfinished_best(sweep_dir, entries, rows, sweep)}
    if left:
        submitted = {number: (item.plan, item.config) for number, item in left.items()}
        path = sweep_dir / cluster.SLURM_SCRIPT
        job = submit.submit_array(submitted, path, script(sweep_dir, entries, sweep.jobs), sweep.jobs)
        told = _queued(sweep_dir, job, sorted(left), sweep.jobs)
    else:
        at_work = f"{alive} of {len(rows)} trials are queued or running"
        told = [table.render(found), "", at_work if alive else table.ending(found, short(sweep_dir))]
    print("\n".join([*told, f"sweep: {sweep_dir}"]))
    return ExitCode.DONE


def collect(sweep_dir: Path) -> Table:
    """Reads what came of a sweep; of one that Slurm runs, writes the tables anew.

    Raises:
        UserError: The folder is no sweep.
    """
    found = table.read(sweep_dir)
    if not (sweep_dir / cluster.SLURM_SCRIPT).is_file():
        return found
    return _written(sweep_dir, {row.trial: row.parameters for row in found.rows}, found.metrics)


def _written(sweep_dir: Path, parameters: Mapping[int, Mapping[str, str]], metrics: Sequence[str]) -> Table:
    """Reads what came of the trials and writes the tables; the last to read is the last to write."""
    with rundir.locked(sweep_dir, wait=True):
        rows = _rows(sweep_dir, parameters)
        importances = importance.variance_shares(table.finished(rows), metrics[0])
        found = Table(rows=rows, metrics=metrics, importances=importances)
        table.write(sweep_dir, found)
    return found


def _rows(sweep_dir: Path, parameters: Mapping[int, Mapping[str, str]]) -> list[Outcome]:
    folders = {number: sweep_dir / str(number) for number in parameters}
    known = {folder: record.read(folder) for folder in folders.values() if (folder / artifacts.RECORD).is_file()}
    states = jobs.queue(known)
    return [
        outcomes.of_run(folder, number, parameters[number], _code(known[folder]), states)
        if folder in known
        else outcomes.waiting(number, parameters[number], "waiting", None)
        for number, folder in folders.items()
    ]


def _code(entry: record.Record) -> int | None:
    return entry.invocations[-1].exit_code if entry.invocations else None


def _unfinished_best(
    sweep_dir: Path, entries: Mapping[int, Entry], rows: Sequence[Outcome], sweep: SweepConfig
) -> list[Entry]:
    """Returns the winner when stages of it are left, which `sweep.finish_best` keeps for the end."""
    winner = table.best(rows, sweep.metric) if sweep.finish_best else None
    if winner is None:
        return []
    stages = record.read(sweep_dir / str(winner.trial)).stages
    whole = entries[winner.trial].whole
    done = all(step.stage in stages and stages[step.stage].is_finished for step in whole.plan.steps)
    return [] if done else [entries[winner.trial]]


def _queued(sweep_dir: Path, job: str, numbers: Sequence[int], at_a_time: int) -> list[str]:
    sweep, count = short(sweep_dir), len(numbers)
    log = short(sweep_dir / str(numbers[0]) / cluster.ARRAY_LOG.replace("%A", job).replace("%a", str(numbers[0])))
    together = f", {at_a_time} at a time" if count > 1 else ""
    return [
        f"job {job} is queued with {count} trial{'s' * (count > 1)}{together}: {sweep}/{cluster.SLURM_SCRIPT}",
        f"watch:  tunerun sweep show {sweep}\n        tail -F {log}\n        squeue --job={job}",
        f"stop:   scancel {job}   (training saves first; go on: tunerun resume {sweep})",
    ]
