"""`tunerun replay RUN`: runs it again from its record, in a new directory, and says whether it came to the same."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunerun import artifacts, fits, paths
from tunerun.base_model import read_teacher
from tunerun.commands import arguments
from tunerun.commands.prepare import OUTPUTS, Prepared, execute, plan_for, require_here
from tunerun.config import typed
from tunerun.config.credentials import secret_variables
from tunerun.config.data_sources import at_commit, with_paths
from tunerun.config.register import new_run_id
from tunerun.config.schema import RunConfig
from tunerun.errors import ExitCode, Problem, UserError
from tunerun.fits import Fit
from tunerun.hashes import path_sha256
from tunerun.launch import nodes
from tunerun.plan import plan as plans
from tunerun.plan.steps import AnswerStep, Step, TrainStep
from tunerun.run import compare, provenance, results
from tunerun.run.compare import Difference
from tunerun.run.results import Results
from tunerun.run.summary import short

_AS_RECORDED = "code, packages, machine, models and data are as recorded"


def main(argv: Sequence[str]) -> int:
    """Says what differs from the record, runs, and compares artifacts and metrics.

    Args:
        argv: The run directory, and optionally `run_dir=FOLDER` for the new one.

    Returns:
        0 when the replay came to the same, 3 when it did not, or the code the run ended with.

    Raises:
        UserError: The folder is no run that ended well, the new one holds a run, or it cannot be run here.
    """
    _, rest = arguments.split(argv, flags=(), values=())
    targets = [item.partition("=")[2] for item in rest if item.startswith("run_dir=")]
    named = Path(arguments.one([item for item in rest if not item.startswith("run_dir=")], "the directory of a run"))
    recorded = results.read(named)
    if recorded.record.status != "done":
        raise UserError(f"{named} did not run to its end ({recorded.record.status}): tunerun resume {short(named)}")
    folder = Path(targets[-1]) if targets else OUTPUTS / recorded.record.name / new_run_id()
    place = nodes.meeting(recorded.config, os.environ)
    # On a node that follows it may be what the leader has just begun.
    if (place is None or place.is_leader) and (folder / artifacts.RECORD).exists():
        # What is done there would be skipped, and then be found to be the same.
        raise UserError(Problem(where="run_dir", what=f"{folder} holds a run already.", fix="Choose a new folder."))
    prepared = _prepared(recorded, folder.absolute())
    print(_heading(changed_since(recorded, prepared), named))
    require_here(prepared)
    wrong: list[Difference] = []

    def verdict(made: Path, _: str) -> str:
        found = _differences(recorded, made)
        wrong.extend(_of(found, compare.RESULTS))
        return _verdict(found, named, made)

    code = execute(prepared, summarise=verdict)
    return ExitCode.GATE_FAILED if wrong and code == ExitCode.DONE else code


def changed_since(recorded: Results, prepared: Prepared) -> list[Difference]:
    """Finds what is not as a run's record has it: code, packages, machine, variables, models, data and other files.

    A model of a hub is not compared: the record has its commit, which the replay asks for.

    Args:
        recorded: The run.
        prepared: Its replay.
    """
    config = prepared.config
    record, now = recorded.record, provenance.collect(Path.cwd(), os.environ, secret_variables(config))
    found = compare.compare("environment", compare.environment(record.provenance), compare.environment(now))
    found += compare.compare("base model", *_models(recorded, config))
    found += compare.compare("environment", _deepspeed(_train(recorded)), _deepspeed(prepared.plan.train))
    for section in ("base model", "data"):
        then = {name: digest for name, digest in record.files.items() if compare.section_of(name) == section}
        found += compare.compare(section, then, _hashed(then))
    return found


def _models(recorded: Results, config: RunConfig) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the recorded hash of the base model and of a teacher that lie in a folder, and that of the folder."""
    from tunerun.models import fetch

    base = recorded.record.base_model
    then, now = {}, {}
    folder = _folder(config.model.path)
    if base is not None and folder is not None:
        # Without weights, as for stages=[data], it is the hash of the tokenizer and config alone.
        weights = bool(recorded.record.stages["model"].keys["weights"])
        then["sha256"] = base["sha256"]
        now["sha256"] = fetch.folder_sha256(folder, weights=weights, remote_code=config.model.trust_remote_code)
    folder = _folder(config.objective.teacher)
    if folder is not None and (recorded.run_dir / artifacts.TEACHER).is_file():
        then[compare.TEACHER] = read_teacher(recorded.run_dir).sha256
        now[compare.TEACHER] = fetch.folder_sha256(folder, weights=True)
    return then, now


def _train(recorded: Results) -> TrainStep | None:
    return plans.read(recorded.run_dir / artifacts.PLAN).train


def _deepspeed(train: TrainStep | None) -> dict[str, Any]:
    """Returns what DeepSpeed is told, which a file of the user's may say."""
    return {} if train is None else typed.flatten({"deepspeed": train.deepspeed})


def _folder(path: str | None) -> Path | None:
    """Returns the folder that a model lies in; None for one of a hub."""
    folder = None if path is None else Path(paths.resolve_asset(path)).expanduser()
    return folder if folder is not None and folder.is_dir() else None


def _hashed(recorded: Iterable[str]) -> dict[str, str]:
    """Hashes the files that are there of those that a record names as `key path`."""
    targets = {name: Path(paths.resolve_asset(name.partition(" ")[2])) for name in recorded}
    return {name: path_sha256(path, "files") for name, path in targets.items() if path.exists()}


def _prepared(recorded: Results, folder: Path) -> Prepared:
    """Builds the plan anew, with what the recorded plan had decided for the user."""
    config, commits, base = recorded.config, recorded.commits(), recorded.record.base_model
    train = _train(recorded)
    hardware: dict[str, Any] = {}
    if recorded.record.threads is not None:
        hardware["threads"] = recorded.record.threads
    training: dict[str, Any] = {}
    if train is not None:
        training["micro_batch_size"] = train.micro_batch_size
        training["activation_checkpointing"] = train.activation_checkpointing
    prepared = plan_for(
        replace(
            config,
            run_dir=str(folder),
            model=replace(config.model, revision=(None if base is None else base["revision"]) or config.model.revision),
            # Prepared data of the cache would be those of the run itself.
            data=replace(with_paths(config.data, lambda path: at_commit(path, commits)), cache=False),
            hardware=replace(config.hardware, **hardware),
            train=replace(config.train, **training),
        )
    )
    journal, found = recorded.run_dir / artifacts.ANSWER_JOURNAL, fits.read(recorded.run_dir)
    steps = tuple(_as_recorded(step, journal, found) for step in prepared.plan.steps)
    return replace(prepared, plan=replace(prepared.plan, steps=steps))


def _as_recorded(step: Step, journal: Path, found: tuple[Fit, ...]) -> Step:
    """Lets a teacher's answers, which may be others another time, and what fitted into memory be as recorded."""
    if isinstance(step, TrainStep):
        return replace(step, fits=found)
    if isinstance(step, AnswerStep) and journal.is_file():
        return replace(step, journal=str(journal.absolute()))
    return step


def _heading(found: Sequence[Difference], named: Path) -> str:
    if not found:
        return f"replay of {short(named.absolute())}: {_AS_RECORDED}"
    table = compare.render(found, ("recorded", "now"))
    return f"replay of {short(named.absolute())}; not as recorded:\n{table}\n"


def _differences(recorded: Results, folder: Path) -> list[Difference]:
    return compare.differences(recorded, results.read(folder))


def _of(found: Sequence[Difference], sections: Collection[compare.Section]) -> list[Difference]:
    return [item for item in found if item.section in sections]


def _verdict(found: Sequence[Difference], named: Path, folder: Path) -> str:
    """Says whether the replay came to the same, and if not, what it had found to be another."""
    wrong, causes = _of(found, compare.RESULTS), _of(found, compare.CAUSES)
    if not wrong:
        return f"identical: metrics and artifacts of {short(folder)} are those of {short(named.absolute())}"
    names = (short(named.absolute()), short(folder))
    before = f"not as recorded:\n{compare.render(causes, names)}" if causes else _AS_RECORDED
    return f"not identical:\n{compare.render(wrong, names)}\n{before}"
