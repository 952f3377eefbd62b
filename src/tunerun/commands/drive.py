"""Runs the trials of a sweep, some at a time, and writes down what came of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tunerun import redact
from tunerun.commands import array
from tunerun.commands.prepare import Prepared, prepare, require_here, require_one_node, require_ready
from tunerun.commands.trial import Entry, gpus, own
from tunerun.config import typed
from tunerun.config.credentials import secrets_of
from tunerun.config.overrides import key_of
from tunerun.config.resolve import Resolved, resolve
from tunerun.config.schema import SweepConfig
from tunerun.errors import ExitCode, Problem, TunerunError, UserError
from tunerun.launch.forks import ForkServers
from tunerun.launch.process import StopSignals, Supervision, environment, spawn
from tunerun.launch.terminal import Terminal
from tunerun.plan.plan import Plan
from tunerun.plan.steps import TrainStep
from tunerun.run import runner
from tunerun.run.summary import short
from tunerun.sweep import measures, outcomes, table, trials, wandb
from tunerun.sweep.sources import Base, MakeSource, Source
from tunerun.sweep.table import Table
from tunerun.sweep.trials import Outcome, Trial

# What a trial is measured by; the rest can wait for the winner.
_TRIAL_STAGES = ("data", "train", "eval")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What was typed, and where the sweep is."""

    arguments: tuple[str, ...]
    """All of them, so that the sweep can be resumed."""
    search_path: tuple[str, ...]
    """The override of hydra.searchpath, when there is one: Hydra keeps its own from the trials."""
    config_dir: Path | None
    sweep_dir: Path
    numbers: dict[str, int] | None
    """Of the trials of a grid that is resumed, by digest; None for a new sweep."""


def drive(request: Request, config: DictConfig, make: MakeSource) -> ExitCode:
    """Runs a sweep to its end.

    Args:
        request: What was typed.
        config: What Hydra composed from all but the axes.
        make: Makes the source of trials.

    Returns:
        1 when any trial failed, 75 when a signal stopped the sweep.

    Raises:
        UserError: A point that is checked beforehand is wrong; nothing was started then.
    """
    base = _base(request, config)
    driver = _Driver(request=request, sweep=base.sweep, source=make(base), secrets=secrets_of(config, os.environ))
    with driver.servers:
        driver.check()
        return driver.queue() if driver.is_queued else driver.run()


def exported(request: Request, config: DictConfig, make: MakeSource) -> str:
    """Returns a sweep as a file for `wandb sweep`, after the checks that come before a run of it.

    Args:
        request: What was typed.
        config: What Hydra composed from all but the axes.
        make: Makes the source of trials.

    Raises:
        UserError: A point that is checked beforehand is wrong, or wandb cannot do the same.
    """
    base = _base(request, config)
    source, first = make(base), base.sweep.metric[:1]
    text = wandb.render(source.axes, source.fixed, base.sweep, source.settings)
    problems: list[Problem] = []
    for trial in source.samples():
        plan = prepare(resolve([*trial.point, *request.search_path], request.config_dir)).plan
        if first == ("eval_loss",):
            problems += measures.unjudged(plan, "wandb", "sweep.metric=train_loss")
        else:
            problems += measures.missing(plan, first)
    if problems:
        raise UserError(dict.fromkeys(problems))
    if source.settings is not None and source.prunes:
        left_out = f"hydra.sweeper.pruner={source.settings.pruner} is not in the file"
        print(f"{left_out}: to end trials early, add wandb's early_terminate to it ({wandb.KEYS})", file=sys.stderr)
    return text


def remembered(request: Request, config: DictConfig, make: MakeSource) -> Table:
    """Returns what the storage of a search knows of its trials, those of other processes included.

    Args:
        request: What was typed.
        config: What Hydra composed from all but the axes.
        make: Makes the source of trials.

    Raises:
        UserError: The storage cannot be opened, or is not there.
    """
    base = _base(request, config)
    source, metrics = make(base), base.sweep.metric
    source.start(create=False)
    rows = source.known()
    return Table(rows=rows, metrics=metrics, importances=source.importances(table.finished(rows), metrics[0]))


def _base(request: Request, config: DictConfig) -> Base:
    sweep, problems = typed.build(SweepConfig, _section(config.sweep), "sweep")
    if problems:
        raise UserError(problems)
    assert sweep is not None, "every key has a default"
    return Base(sweep_dir=request.sweep_dir, config_dir=request.config_dir, sweep=sweep, seed=config.seed)


@dataclass(kw_only=True, slots=True)
class _Driver:
    """The state of one execution of a sweep."""

    request: Request
    sweep: SweepConfig
    source: Source
    secrets: tuple[str, ...]
    entries: dict[int, Entry] = field(default_factory=dict)
    """Of the trials that are known, by number."""
    composed: dict[tuple[str, ...], Resolved] = field(default_factory=dict)
    """By point: a search tries points that were checked before it began, too."""
    started: set[int] = field(default_factory=set)
    """Numbers of the trials that were started in this execution."""
    codes: dict[int, ExitCode] = field(default_factory=dict)
    """Of the trials that ended in this execution."""
    ended: dict[int, Outcome] = field(default_factory=dict)
    """What came of these."""
    stopped: bool = False
    """Whether a signal ended it, in a trial or between two."""
    servers: ForkServers = field(default_factory=ForkServers)
    """Keep the imports of stages from trial to trial."""

    def check(self) -> None:
        """Prepares the source's samples, so that what is wrong with any is told before the first trial starts."""
        problems = self._typed_secrets()
        samples = self.source.samples()
        for trial in samples:
            try:
                entry = self._prepare(trial)
            except UserError as error:
                if not error.problems:
                    raise
                problems += error.problems
            else:
                # What is typed is written down before the first trial starts, whose runner would refuse them too.
                whole = entry.whole.config
                problems += redact.problems(typed.flatten(typed.plain(whole)), secrets_of(whole, os.environ))
                if self.source.is_complete:
                    self.entries[trial.number] = entry
                self._begin_imports(entry)
        if self.is_queued and not problems:
            array.script(self.request.sweep_dir, self.entries, self.sweep.jobs)
        if problems:
            # What all trials share is told once.
            raise UserError(dict.fromkeys(problems))
        listed = samples if self.source.is_complete else []
        if self.request.numbers is None:
            trials.write(self.request.sweep_dir, self.request.arguments, listed)
        elif {trial.digest: trial.number for trial in listed} != self.request.numbers:
            what = "its arguments now give other trials than they did."
            raise UserError(Problem(where=str(self.request.sweep_dir), what=what, fix="Start a new sweep."))

    def _begin_imports(self, entry: Entry) -> None:
        """Lets what a trial's training imports be imported while the other trials are checked."""
        train = entry.prepared.plan.train
        # Of a sweep that is resumed nothing may be left to train.
        if train is None or not _is_copied(train) or entry.whole.is_queued or self.request.numbers is not None:
            return
        launch = runner.launch(train, Path(entry.prepared.plan.run_dir), entry.prepared.config)
        self.servers.begin(launch.argv, environment(launch, {}))

    @property
    def is_queued(self) -> bool:
        """Whether Slurm runs the trials, or some of them."""
        return any(entry.whole.is_queued for entry in self.entries.values())

    def queue(self) -> ExitCode:
        """Queues what is left of the trials."""
        return array.queue(self.request.sweep_dir, self.entries, self.sweep)

    def _is_array(self, prepared: Prepared) -> bool:
        # What a search tries next depends on what came of the trials before.
        return prepared.is_queued and prepared.config.cluster.kind == "slurm" and self.source.is_complete

    def _typed_secrets(self) -> list[Problem]:
        """Finds secrets in what was typed, which is written down so that the sweep can be resumed."""
        fix = "Name an environment variable instead: 'KEY=${oc.env:NAME}'."
        return [
            Problem(where=key_of(item), what="holds a secret, which would be written into the sweep's files.", fix=fix)
            for item in self.request.arguments
            if redact.values(item, self.secrets) != item
        ]

    def run(self) -> ExitCode:
        """Runs trials until there are no more, and the last stages of the best."""
        # A search that has begun is gone on with, and not begun anew because its storage went away.
        self.source.start(create=self.request.numbers is None or not trials.begun(self.request.sweep_dir))
        with StopSignals() as stop:
            self._run_trials(stop)
            found = self._written()
            if not self.stopped and self._finish_best(found.rows, stop):
                self.stopped = ExitCode.PREEMPTED in self.codes.values()
                found = self._written()
        return self._say_end(found)

    def _run_trials(self, stop: StopSignals) -> None:
        free = list(range(self.sweep.jobs))
        running: dict[Future[ExitCode], tuple[Entry, int]] = {}
        with ThreadPoolExecutor(self.sweep.jobs) as pool:
            while True:
                # A stage may have been sent the signal itself.
                self.stopped = bool(stop.received) or ExitCode.PREEMPTED in self.codes.values()
                while free and not self.stopped and (entry := self._next()) is not None:
                    print(self._title(entry), flush=True)
                    slot = free.pop(0)
                    self.started.add(entry.trial.number)
                    running[pool.submit(self._run, entry, entry.prepared, slot, stop)] = (entry, slot)
                if self.ended:
                    # Only now, so that no trial waits for it.
                    self._written()
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    entry, slot = running.pop(future)
                    free.append(slot)
                    self._end(entry, future.result())

    def _end(self, entry: Entry, code: ExitCode) -> None:
        number = entry.trial.number
        self.codes[number] = code
        self.ended[number] = self._outcome(entry)
        self.source.ended(entry.trial, self.ended[number])

    def _next(self) -> Entry | None:
        """Returns a trial that can be run; one that cannot be planned has failed."""
        while (trial := self.source.next()) is not None:
            if trial.number in self.entries:
                return self.entries[trial.number]
            try:
                entry = self.entries[trial.number] = self._prepare(trial)
            except UserError as error:
                print(f"trial {trial.number}: {error}", file=sys.stderr)
                self.codes[trial.number] = error.exit_code
                self.ended[trial.number] = outcomes.waiting(trial.number, trial.parameters, "failed", error.exit_code)
                self.source.ended(trial, self.ended[trial.number])
            else:
                return entry
        return None

    def _title(self, entry: Entry) -> str:
        count = entry.trial.number + 1 if self.source.is_complete else len(self.entries)
        varied = f": {' '.join(entry.trial.varied)}" if entry.trial.varied else ""
        return f"trial {entry.trial.number} ({count} of {self.source.total}){varied}"

    def _prepare(self, trial: Trial) -> Entry:
        if trial.point not in self.composed:
            self.composed[trial.point] = resolve([*trial.point, *self.request.search_path], self.request.config_dir)
        resolved = self.composed[trial.point]
        missed = sorted(resolved.config.sweep.params.keys() - self.sweep.params.keys())
        if missed:
            what = "comes from a recipe that is varied itself, so that it was not known in time."
            raise UserError(Problem(where=f"sweep.params.{missed[0]}", what=what, fix="Vary the recipe by hand."))
        config = own(resolved.config, self.request.sweep_dir, trial.number, self.sweep.jobs)
        whole = prepare(replace(resolved, config=config))
        if self._is_array(whole):
            require_ready(whole)
        else:
            require_here(whole)
            require_one_node(whole)
            gpus(whole, 0, self.sweep.jobs)
        if "answer" in whole.config.stages:
            fix = "Collect the answers once, with stages=[answer], and sweep with data.path=RUN/answer/answers.jsonl."
            raise UserError(Problem(where="stages", what="each trial would ask the teacher anew.", fix=fix))
        short = whole
        if whole.config.sweep.finish_best:
            stages = tuple(stage for stage in config.stages if stage in _TRIAL_STAGES)
            short = prepare(replace(resolved, config=replace(config, stages=stages)))
        problems = self._incomparable(short.plan)
        if problems:
            raise UserError(problems)
        return Entry(trial=trial, prepared=short, whole=whole)

    def _incomparable(self, plan: Plan) -> list[Problem]:
        """Finds what a trial would lack that it is to be judged or ranked by."""
        settings = self.source.settings
        if settings is not None and self.source.prunes:
            judge = f"hydra.sweeper.pruner={settings.pruner}"
            return measures.unjudged(plan, judge, "hydra.sweeper.pruner=none")
        # A grid may be run for its own sake, with the metric that nobody chose.
        chosen = settings is not None or self.sweep.finish_best or self.sweep.metric != SweepConfig().metric
        return measures.missing(plan, self.sweep.metric) if chosen else []

    def _run(self, entry: Entry, prepared: Prepared, slot: int, stop: StopSignals) -> ExitCode:
        """Runs a trial; its failure is a result, not the end of the sweep."""
        prefix = f"{entry.trial.number} | " if self.sweep.jobs > 1 else ""
        terminal = Terminal(sys.stdout, sys.stderr, prefix=prefix)
        supervision = Supervision(
            stop=stop,
            env=gpus(prepared, slot, self.sweep.jobs),
            judge=self._judge(entry) if self.source.prunes else None,
            start=self.servers.start if _is_copied(prepared.plan.train) else spawn,
        )
        try:
            return runner.execute(prepared.plan, config=prepared.config, terminal=terminal, supervision=supervision)
        except TunerunError as error:
            terminal.line(f"{error}", error=True)
            return error.exit_code

    def _judge(self, entry: Entry) -> Callable[[int, float], bool]:
        every = entry.prepared.config.train.eval_steps
        assert every is not None, "checked with the trial"
        return lambda step, loss: self.source.goes_on(entry.trial, step // every, loss)

    def _finish_best(self, rows: Sequence[Outcome], stop: StopSignals) -> bool:
        """Runs the stages that were left out of the trials for the winner; says whether there were any."""
        winner = table.best(rows, self.sweep.metric)
        trial = None if winner is None else self.source.find(winner.trial)
        if trial is None or not self.sweep.finish_best:
            return False
        entry = self.entries[trial.number] if trial.number in self.entries else self._prepare(trial)
        self.entries[trial.number] = entry
        if entry.whole is entry.prepared:
            return False
        print(f"best of {len(rows)}: trial {trial.number} ({' '.join(trial.varied)}); its other stages", flush=True)
        self.codes[trial.number] = self._run(entry, entry.whole, 0, stop)
        self.ended[trial.number] = self._outcome(entry)
        return True

    def _written(self) -> Table:
        """Reads what came of all trials so far, and writes the sweep's tables."""
        rows = {row.trial: row for row in self.source.known()}
        rows |= {number: self._outcome(entry) for number, entry in self.entries.items() if number not in self.ended}
        rows |= self.ended
        listed, metrics = list(rows.values()), self.sweep.metric
        importances = self.source.importances(table.finished(listed), metrics[0])
        found = Table(rows=listed, metrics=metrics, importances=importances)
        table.write(self.request.sweep_dir, found)
        return found

    def _outcome(self, entry: Entry) -> Outcome:
        number, parameters = entry.trial.number, entry.trial.parameters
        if number in self.started and number not in self.codes:
            # To ask its directory would keep it, for a moment, from beginning there.
            return outcomes.waiting(number, parameters, "running", None)
        return outcomes.read(self.request.sweep_dir, number, parameters, self.codes.get(number))

    def _say_end(self, found: Table) -> ExitCode:
        sweep = short(self.request.sweep_dir)
        ending = f"go on: tunerun resume {sweep}" if self.stopped else table.ending(found, sweep)
        print(f"\n{table.render(found)}\n\n{ending}\nsweep: {self.request.sweep_dir}")
        if self.stopped:
            return ExitCode.PREEMPTED
        # A trial of a search that failed before it was resumed is not run again; one that is refused now may be done.
        good = {ExitCode.DONE, ExitCode.PRUNED}
        failed = any(row.status == "failed" for row in found.rows) or not set(self.codes.values()) <= good
        return ExitCode.STAGE_FAILED if failed else ExitCode.DONE


def _is_copied(train: TrainStep | None) -> bool:
    # CUDA cannot be used in a copy of a process that looked for GPUs, which imports may do.
    return train is not None and train.placement.device != "cuda"


def _section(node: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
