"""The base model of a run, as model.json records it. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunerun import artifacts


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseModel:
    """What the model step found."""

    folder: Path
    """Absolute path of the folder with config.json, tokenizer and weights."""
    path: str
    """What the user asked for: a folder, a hub id or a shipped name."""
    revision: str | None
    """Commit on the hub; None for local folders."""
    sha256: str
    """Over all its files, so that the same weights have the same value wherever they lie."""


def read_base(run_dir: Path) -> BaseModel:
    """Reads model.json of a run."""
    return _read(run_dir / artifacts.MODEL)


def read_teacher(run_dir: Path) -> BaseModel:
    """Reads teacher.json of a run, which objective=distill has."""
    return _read(run_dir / artifacts.TEACHER)


def _read(path: Path) -> BaseModel:
    data = artifacts.read_json(path)
    return BaseModel(folder=Path(data["folder"]), path=data["path"], revision=data["revision"], sha256=data["sha256"])


def write_base(run_dir: Path, base: BaseModel) -> None:
    """Writes model.json of a run."""
    _write(run_dir / artifacts.MODEL, base)


def write_teacher(run_dir: Path, teacher: BaseModel) -> None:
    """Writes teacher.json of a run."""
    _write(run_dir / artifacts.TEACHER, teacher)


def _write(path: Path, base: BaseModel) -> None:
    artifacts.write_json(
        path,
        {
            "schema": 1,
            "folder": str(base.folder),
            "path": base.path,
            "revision": base.revision,
            "sha256": base.sha256,
        },
    )
