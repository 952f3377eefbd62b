"""Executes a plan: one child process for each stage, skipping what is done, and a record of everything."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunerun import __version__, artifacts, redact
from tunerun.artifacts import Artifact
from tunerun.base_model import read_base
from tunerun.config import typed
from tunerun.config.credentials import secret_variables, secrets_of
from tunerun.config.schema import RunConfig
from tunerun.errors import ExitCode, Problem, StageError, TunerunError, UserError
from tunerun.formats import checkpoints
from tunerun.formats.verdicts import VERIFY_REPORT
from tunerun.launch import allocation, command, nodes, process
from tunerun.launch.command import Launch, Node
from tunerun.launch.nodes import Leader, Meeting
from tunerun.launch.process import Ended, StopSignals, Supervision
from tunerun.launch.terminal import Terminal, duration
from tunerun.launch.waiting import with_wait_policy
from tunerun.plan import plan as plans
from tunerun.plan.plan import Plan
from tunerun.plan.steps import PublishStep, Step, TrainStep
from tunerun.run import card, drift, job, provenance, record, report, rundir, statuses, summary
from tunerun.run.checksums import Checksums
from tunerun.run.fingerprint import Fingerprint, base_is_there
from tunerun.run.record import Invocation, Record, StageRecord
from tunerun.run.statuses import Outcome

Summary = Callable[[Path, str], str]


def execute(
    plan: Plan,
    *,
    config: RunConfig,
    allow: frozenset[str] = frozenset(),
    terminal: Terminal | None = None,
    supervision: Supervision | None = None,
    summarise: Summary = summary.render,
) -> ExitCode:
    """Runs the steps of a plan in its run directory, skipping those that are done and unchanged.

    Writes config.yaml, plan.json, run.json, logs/, report.html and README.md besides what the stages write. Prints the
    stages' output as it comes and `run: <directory>` as the last line, however the run ends.

    Args:
        plan: What to do.
        config: What the plan was made from, for config.yaml.
        allow: Keys, or sections of keys, that may differ from those the run was trained with.
        terminal: Where to print; standard output and error by default.
        supervision: Of the sweep that the run is a trial of; None takes the signals of this process.
        summarise: Makes the text shown when all is done, from the run directory and the run's name.

    Returns:
        How the run ended.

    Raises:
        UserError: Another process works in the run directory, it holds something else, or what it was trained with
            changed.
        StageError: The run directory could not be written.
    """
    run_dir = Path(plan.run_dir)
    terminal = Terminal(sys.stdout, sys.stderr) if terminal is None else terminal
    secrets = secrets_of(config, os.environ)
    try:
        if found := redact.problems(typed.flatten(typed.plain(config)), secrets):
            raise UserError(found)
        with (
            # First: the other nodes learn of everything that goes wrong here.
            nodes.leading(_meeting(plan, config), str(run_dir)) as leader,
            rundir.locked(run_dir) as lock,
            _supervised(supervision) as supervised,
        ):
            runner = _Runner(
                plan=plan,
                config=config,
                run_dir=run_dir,
                terminal=terminal,
                supervision=supervised,
                secrets=secrets,
                lock=lock,
                leader=leader,
                summarise=summarise,
                checksums=Checksums(run_dir),
                record=open_record(plan, config, run_dir),
            )
            return runner.run(allow)
    except OSError as error:
        raise StageError(f"{run_dir}: {error}") from error
    finally:
        terminal.line(f"run: {run_dir}")


def launch(step: Step, run_dir: Path, config: RunConfig, node: Node | None = None) -> Launch:
    """Returns how a step of a run is started, without the keys that are for other steps.

    Args:
        step: What to run.
        run_dir: The run directory.
        config: Of the run.
        node: This machine among several.
    """
    wanted = with_wait_policy(command.command(step, run_dir, node=node))
    return command.hiding(wanted, step, secret_variables(config))


def _meeting(plan: Plan, config: RunConfig) -> Meeting | None:
    # Nothing but training is shared out among nodes.
    return None if plan.train is None else nodes.meeting(config, os.environ)


@contextlib.contextmanager
def _supervised(supervision: Supervision | None) -> Iterator[Supervision]:
    if supervision is not None:
        yield supervision
        return
    with StopSignals() as stop:
        yield Supervision(stop=stop)


@dataclass(kw_only=True, slots=True)
class _Runner:
    """The state of one execution."""

    plan: Plan
    config: RunConfig
    run_dir: Path
    terminal: Terminal
    supervision: Supervision
    secrets: tuple[str, ...]
    lock: int
    leader: Leader | None
    summarise: Summary
    checksums: Checksums
    record: Record
    executed: int = 0
    """Stages that were not skipped."""

    def run(self, allow: frozenset[str]) -> ExitCode:
        """Runs all steps and writes what belongs to the run as a whole."""
        rundir.remove_leftovers(self.run_dir)
        for path in (self.config.model.path, self.config.model.adapter, self.config.objective.teacher):
            if path is not None:
                checkpoints.renew(Path(path).parent)
        self.plan = drift.widened(self.plan, self.record)
        # Before anything is written; what the model step finds is compared when it has run.
        drift.refuse(self.plan, self.run_dir, self.record, allow)
        self._begin()
        code = ExitCode.STAGE_FAILED
        try:
            code = self._run_steps(allow)
        except UserError as error:
            code = error.exit_code
            raise
        finally:
            self._finish(code)
            if self.leader is not None:
                self.leader.end(code)
        if code == ExitCode.DONE:
            self.terminal.line("\n" + self.summarise(self.run_dir, self.plan.name))
        elif code == ExitCode.PREEMPTED:
            self.terminal.line(f"go on: tunerun resume {summary.short(self.run_dir)}")
        return code

    def _run_steps(self, allow: frozenset[str]) -> ExitCode:
        for number, step in enumerate(self.plan.steps, start=1):
            received = self.supervision.stop.received
            if received:
                self.terminal.line(f"stopped by {received[0].name} before {step.stage}")
                return ExitCode.PREEMPTED
            code = self._run_step(step, f"[{number}/{len(self.plan.steps)}] {step.stage}", allow)
            if code != ExitCode.DONE:
                return code
        return ExitCode.DONE

    def _run_step(self, step: Step, title: str, allow: frozenset[str]) -> ExitCode:
        now = drift.of_step(step, self.run_dir, self.record)
        old = self.record.stages.get(step.stage)
        # A stage that makes nothing, such as serve, is never done.
        same = old is not None and (old.fingerprint == now.digest or drift.is_settled(old, now))
        if old is not None and old.artifacts and old.is_finished and same:
            if all(map(self.checksums.match, old.artifacts)) and base_is_there(self.run_dir, old.artifacts):
                self.record = self.record.with_stage(step.stage, dataclasses.replace(old, status="skipped"))
                self.terminal.line(f"{title}: unchanged, skipped")
                return ExitCode.DONE
        elif old is not None and step.stage in drift.PROTECTED and drift.is_trained(self.run_dir, self.record):
            found = drift.problems(old, now, allow)
            if found:
                raise UserError(found)
        return self._execute(step, title, now)

    def _execute(self, step: Step, title: str, now: Fingerprint) -> ExitCode:
        if not self.executed:
            collected = provenance.collect(Path.cwd(), os.environ, secret_variables(self.config))
            self.record = dataclasses.replace(self.record, provenance=collected)
        self.executed += 1
        old = self.record.stages.get(step.stage)
        entry = StageRecord(
            status="running",
            started=record.now(),
            fingerprint=now.digest,
            keys=redact.data(now.keys, self.secrets),
            inputs=now.inputs,
            files=now.files,
        )
        self._save(step.stage, entry)
        if step.stage in ("train", "merge", "export"):
            # Nobody has verified what it is about to make.
            (self.run_dir / VERIFY_REPORT).unlink(missing_ok=True)
        self.terminal.line(title)
        if isinstance(step, PublishStep):
            card.write_published(self.run_dir, step, self.secrets)
        ended, found = self._run_process(step)
        code, error, made = found.code, found.error, found.made
        self._save(step.stage, _ended(entry, ended, code, error and redact.text(error, self.secrets), made))
        if code == ExitCode.DONE:
            self._settle(made, old)
        self.terminal.line(f"{title}: {_WORDS[code].format(f'after {duration(ended.seconds)}')}")
        if code not in (ExitCode.DONE, ExitCode.PRUNED, ExitCode.PREEMPTED):
            self.terminal.line(f"  log: {self.run_dir / artifacts.LOGS / step.stage}.log")
            if not found.shown:
                self.terminal.line(f"{step.stage}: {error}", error=True)
        return code

    def _run_process(self, step: Step) -> tuple[Ended, Outcome]:
        """Runs the process of a step, or its ranks, again while they die and `hardware.max_restarts` allows it."""
        hardware, started, restarts = self.config.hardware, time.monotonic(), 0
        received = self.supervision.stop.received
        while True:
            statuses.remove(self.run_dir, step.stage)
            try:
                node = self._gather(step)
            except TunerunError as error:
                found = Outcome(code=ExitCode(error.exit_code), error=str(error), shown=False)
                return Ended(exit_code=int(error.exit_code), seconds=time.monotonic() - started), found
            ended = process.run(
                launch(step, self.run_dir, self.config, node),
                log=self.run_dir / artifacts.LOGS / f"{step.stage}.log",
                terminal=self.terminal,
                supervision=self.supervision,
                clean=redact.Lines(self.secrets),
                lock=self.lock,
                stall_seconds=hardware.stall_seconds,
                others=self.leader.fault if self.leader is not None and node is not None else None,
            )
            if self.leader is not None and node is not None:
                self.leader.over()
            rundir.clean_logs_of_ranks(self.run_dir, step.stage, self.secrets)
            found = statuses.outcome(self.run_dir, step.stage, ended, stopped=bool(received))
            if received or not (found.again or (found.died and restarts < hardware.max_restarts)):
                break
            restarts += found.died
            why = f"restart {restarts} of {hardware.max_restarts}" if found.died else "starting again"
            self.terminal.line(f"{step.stage}: {found.error}; {why}", error=True)
        return dataclasses.replace(ended, seconds=time.monotonic() - started), found

    def _gather(self, step: Step) -> Node | None:
        """Has the other nodes start their ranks of a step that has some."""
        if self.leader is None or not isinstance(step, TrainStep):
            return None
        return self.leader.launch(step.stage, lambda: bool(self.supervision.stop.received))

    def _settle(self, made: tuple[Artifact, ...], old: StageRecord | None) -> None:
        """Remembers the hashes of what was made, and removes what the stage made before and does not make any more."""
        for artifact in made:
            self.checksums.remember(artifact)
        kept = [item.path for entry in self.record.stages.values() for item in entry.artifacts]
        for artifact in old.artifacts if old is not None else ():
            if not any(rundir.overlap(artifact.path, path) for path in kept):
                rundir.remove(self.run_dir / artifact.path)
                self.terminal.line(f"  removed {artifact.path}: not part of this run any more")

    def _begin(self) -> None:
        call = Invocation(
            command=tuple(redact.text(argument, self.secrets) for argument in sys.argv),
            directory=str(Path.cwd()),
            started=record.now(),
        )
        self.record = dataclasses.replace(
            self.record, status="running", finished=None, invocations=(*self.record.invocations, call)
        )
        record.write(self.run_dir, self.record)
        rundir.write_config(self.run_dir, self.config, self.secrets)
        artifacts.write_json(self.run_dir / artifacts.PLAN, plans.to_json(self.plan))
        if self.plan.train is not None:
            rundir.write_launch(self.run_dir, self.plan.train)
        place = allocation.allocation(os.environ) if self.config.cluster.kind == "slurm" else None
        before = job.read(self.run_dir)
        if place is not None and place.job is not None and (before is None or before.id != place.job):
            # The script was submitted by hand.
            job.write(self.run_dir, job.Job(id=place.job, submitted=record.now()))

    def _save(self, stage: str, entry: StageRecord) -> None:
        self.record = self.record.with_stage(stage, entry)
        record.write(self.run_dir, self.record)

    def _finish(self, code: ExitCode) -> None:
        finished = record.now()
        *earlier, call = self.record.invocations
        for stage, entry in self.record.stages.items():
            if entry.status == "running":
                # The runner itself failed, on a full disk say; it has killed the stage.
                self.record = self.record.with_stage(stage, dataclasses.replace(entry, status="failed"))
        data = self.record.stages.get("data")
        self.record = dataclasses.replace(
            self.record,
            status=_STATUS[code],
            finished=finished,
            invocations=(*earlier, dataclasses.replace(call, finished=finished, exit_code=int(code))),
            base_model=_base_model(self.run_dir),
            data={**data.files, **{item.path: item.sha256 for item in data.artifacts}} if data is not None else {},
        )
        record.write(self.run_dir, self.record)
        self.checksums.save()
        # A stage that was killed could not remove its own.
        rundir.remove_leftovers(self.run_dir)
        if self.executed or not (self.run_dir / artifacts.REPORT).is_file():
            report.write(self.run_dir, self.secrets)
            card.write(self.run_dir, self.secrets)


_STATUS: dict[ExitCode, Literal["done", "failed", "preempted", "pruned"]] = {
    ExitCode.DONE: "done",
    ExitCode.STAGE_FAILED: "failed",
    ExitCode.USER_ERROR: "failed",
    ExitCode.GATE_FAILED: "failed",
    ExitCode.PRUNED: "pruned",
    ExitCode.PREEMPTED: "preempted",
}
_WORDS = {
    ExitCode.DONE: "done {}",
    ExitCode.STAGE_FAILED: "failed {}",
    ExitCode.USER_ERROR: "failed {}: the config or the data is wrong",
    ExitCode.GATE_FAILED: "failed {}: a gate did not pass",
    ExitCode.PRUNED: "ended {}: other trials of the sweep are better",
    ExitCode.PREEMPTED: "stopped {}; the run can be resumed",
}


def _ended(
    entry: StageRecord, ended: Ended, code: ExitCode, error: str | None, made: tuple[Artifact, ...]
) -> StageRecord:
    return dataclasses.replace(
        entry,
        status=_STATUS[code],
        finished=record.now(),
        seconds=round(ended.seconds, 3),
        exit_code=int(code),
        error=error,
        artifacts=made,
    )


def open_record(plan: Plan, config: RunConfig, run_dir: Path) -> Record:
    """Reads the record of an earlier execution, or begins one."""
    if (run_dir / artifacts.RECORD).is_file():
        return record.read(run_dir)
    strangers = sorted(path.name for path in run_dir.iterdir() if not path.name.startswith("."))
    if strangers:
        what = f"{run_dir} is not the directory of a run, and holds other files ({', '.join(strangers[:3])}, ...)."
        raise UserError(Problem(where="run_dir", what=what, fix="Choose a new or empty folder."))
    threads = plan.train.placement.threads if plan.train is not None else None
    return Record(
        name=plan.name,
        status="running",
        created=record.now(),
        tunerun=__version__,
        seed=config.seed,
        threads=threads,
    )


def _base_model(run_dir: Path) -> dict[str, str | None] | None:
    if not (run_dir / artifacts.MODEL).is_file():
        return None
    base = read_base(run_dir)
    return {"path": base.path, "revision": base.revision, "sha256": base.sha256}
