"""run.json: what was run, when, on what, and what came out.

Written anew, atomically, whenever a stage begins or ends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tunerun import artifacts
from tunerun.artifacts import Artifact
from tunerun.config import typed
from tunerun.errors import Problem, UserError

SCHEMA = 1

StageStatus = Literal["running", "done", "skipped", "failed", "preempted", "pruned"]
RunStatus = Literal["prepared", "submitted", "running", "done", "failed", "preempted", "pruned"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRecord:
    """One stage of a run."""

    status: StageStatus
    """`skipped` stands for done before: times and artifacts are those of the execution that made them."""
    started: str
    """ISO 8601, UTC."""
    finished: str | None = None
    seconds: float | None = None
    exit_code: int | None = None
    """What the stage said it ended with: see `errors.ExitCode`."""
    error: str | None = None
    """Message of a failure."""
    fingerprint: str
    """One hash over the three that follow."""
    keys: Mapping[str, Any]
    """Choices that the results depend on, by dotted key."""
    inputs: Mapping[str, str]
    """Hashes of what other stages made."""
    files: Mapping[str, str]
    """Hashes of the user's files."""
    artifacts: tuple[Artifact, ...] = ()

    @property
    def is_finished(self) -> bool:
        """Whether its artifacts can be used."""
        return self.status in ("done", "skipped")


@dataclass(frozen=True, kw_only=True, slots=True)
class Invocation:
    """One command that worked on the run."""

    command: tuple[str, ...]
    directory: str
    started: str
    finished: str | None = None
    exit_code: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A run, as run.json holds it."""

    name: str
    status: RunStatus
    created: str
    finished: str | None = None
    tunerun: str
    """Version that made it."""
    seed: int
    threads: int | None
    """CPU threads of the training processes."""
    base_model: Mapping[str, Any] | None = None
    """Path, revision and sha256 of the base model."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Hashes of the data files and of the prepared data."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Code, packages, machine and environment of the newest execution that did work."""
    invocations: tuple[Invocation, ...] = ()
    """The newest last."""
    stages: Mapping[str, StageRecord] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, str]:
        """Hashes of the user's files that the stages read, by `key path`; `base_model` has that of `model.path`."""
        read = {name: digest for stage in self.stages.values() for name, digest in stage.files.items()}
        return {name: digest for name, digest in read.items() if not name.startswith("model.path ")}

    def with_stage(self, stage: str, entry: StageRecord) -> Record:
        """Returns the record with one stage replaced or added."""
        return dataclasses.replace(self, stages={**self.stages, stage: entry})


def now() -> str:
    """Returns the time as run.json writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def write(run_dir: Path, record: Record) -> None:
    """Writes run.json."""
    artifacts.write_json(run_dir / artifacts.RECORD, {"schema": SCHEMA, **typed.plain(record)})


def read(run_dir: Path) -> Record:
    """Reads run.json.

    Raises:
        UserError: There is none, or it was written by a newer tunerun, or it is damaged.
    """
    path = run_dir / artifacts.RECORD
    if artifacts.is_sweep(run_dir):
        fix = f"Name one of its trials, such as {run_dir / '0'}, or list them: tunerun sweep show {run_dir}"
        raise UserError(Problem(where=str(run_dir), what="is the directory of a sweep.", fix=fix))
    if not path.is_file():
        what = "is not the directory of a run: it has no run.json."
        raise UserError(Problem(where=str(run_dir), what=what, fix="`tunerun runs` lists the runs."))
    return read_file(path)


def read_file(path: Path) -> Record:
    """Reads a record of this or an older schema.

    Raises:
        UserError: It was written by a newer tunerun, or it is damaged.
    """
    _, data = artifacts.read_versioned(path, SCHEMA)
    record, problems = typed.build(Record, data)
    if record is None:
        raise UserError([dataclasses.replace(problem, source=str(path)) for problem in problems])
    return record
