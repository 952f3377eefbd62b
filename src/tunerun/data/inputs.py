"""Lists the files that a data step reads, each source with how it is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunerun import artifacts
from tunerun.config.schema import SourceConfig
from tunerun.data import read
from tunerun.data.rows import DataFile
from tunerun.errors import Problem, UserError
from tunerun.plan.steps import DataStep


@dataclass(frozen=True, slots=True)
class Input:
    """Files that are read alike."""

    files: tuple[DataFile, ...]
    source: SourceConfig
    """How they are read, with nothing left to the section's settings; what a file says of itself goes before it."""
    key: str
    """Of the config section that says so."""
    evaluated: bool
    """Whether they are `data.eval_path`, kept apart from training."""


def find_inputs(step: DataStep, run_dir: Path) -> list[Input]:
    """Lists what a step reads, downloading files of a hub; the input to evaluate on is the last.

    Args:
        step: What to do.
        run_dir: Has the answers of the run's teacher, when these are trained on.

    Raises:
        UserError: Paths do not exist or hold no data; all of them are named.
        StageError: A data set cannot be downloaded.
    """
    data = step.data
    keys = [f"data.sources.{name}" for name in data.sources] or ["data"]
    wanted = [(key, f"{key}.path", source) for key, source in zip(keys, step.sources, strict=True) if source.path]
    if step.eval_source is not None:
        wanted.append(("data", "data.eval_path", step.eval_source))
    cache_dir = None if step.cache_dir is None else Path(step.cache_dir)
    problems: list[Problem] = []
    found = []
    for key, path_key, source in wanted:
        try:
            files = read.find_files(source.path, path_key, cache_dir, data.streaming, data.hub)
            found.append(Input(tuple(files), source, key, path_key == "data.eval_path"))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    if step.answers:
        # Before the input to evaluate on.
        found.insert(len(found) - (step.eval_source is not None), _answers(step, run_dir))
    return found


def _answers(step: DataStep, run_dir: Path) -> Input:
    """Returns the answers of the run's teacher, which the settings on how files are read are not about."""
    file = DataFile(run_dir / artifacts.ANSWERS, artifacts.ANSWERS, artifacts.ANSWERS)
    source = SourceConfig(format="messages", system=step.data.system, max_rows=step.data.max_rows)
    return Input((file,), source, "answer", evaluated=False)
