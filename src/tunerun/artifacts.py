"""What a run leaves behind: names in the run directory, hashes, and atomic publishing.

Nothing appears under its final name before it is complete: writers fill a staging path on the same file system,
which is flushed to disk and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunerun.errors import Problem, UserError

# Names in a run directory. DESIGN: "A run directory".
CONFIG = "config.yaml"
PLAN = "plan.json"
RECORD = "run.json"
SWEEP = "sweep.json"
JOB = "job.json"
METRICS = "metrics.jsonl"
REPORT = "report.html"
CARD = "README.md"
LOGS = "logs"
STATUS = "status"
LAUNCH = "launch"
MODEL = "model.json"
TEACHER = "teacher.json"
ANSWERS = "answer/answers.jsonl"
STAGE_REPORT = "report.json"
"""In the folder of each stage that reports."""
REPORT_SCHEMA = 1
"""Of all of them but the data stage's."""
ANSWER_REPORT = f"answer/{STAGE_REPORT}"
ANSWER_JOURNAL = "answer/journal.jsonl"
DATA = "data"
DATA_SCHEMA = 2
"""Of data/report.json."""
EVAL_DATA = "data/eval"
FAILED_DATA = "data.failed"
CHECKPOINTS = "checkpoints"
CHECKPOINT_PREFIX = "step-"
# A checkpoint holds this or ADAPTER.
CHECKPOINT_MODEL = "model"
FITTING = "fitting.json"
ADAPTER = "adapter"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MERGED = "merged"
EVAL = "eval"
EXPORT = "export"
BNB4 = "export/bnb4"
GPTQ = "export/gptq"
AWQ = "export/awq"
FP8 = "export/fp8"
VERIFY = "verify"
PUBLISH = "publish"
MODEL_FOLDERS = {
    "merged": MERGED,
    "adapter": ADAPTER,
    "gguf": EXPORT,
    "bnb4": BNB4,
    "gptq": GPTQ,
    "awq": AWQ,
    "fp8": FP8,
}
"""What a run makes that can be published, by the names that `publish.artifacts` takes."""

_CHUNK_BYTES = 1 << 20


def is_adapter(folder: Path) -> bool:
    """Says whether a folder is that of an adapter, as peft writes it."""
    return (folder / ADAPTER_CONFIG).is_file()


def is_sweep(folder: Path) -> bool:
    """Says whether a folder is that of a sweep."""
    return (folder / SWEEP).is_file()


def locate(path: Path) -> tuple[Path, str] | None:
    """Finds the run that a file or folder lies in, wherever links lead; None when it lies in none.

    Returns:
        The run directory, and the name in it that the path begins with, such as `merged`.
    """
    whole = path.resolve()
    for folder in whole.parents:
        if (folder / MODEL).is_file():
            return folder, whole.relative_to(folder).parts[0]
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """A file or folder that a stage published."""

    kind: str
    """What it is: `data`, `adapter`, `model`, `gguf`, `report`, ..."""
    path: str
    """Relative to the run directory, with forward slashes."""
    sha256: str
    """Of the file; for a folder, of its `name sha256` lines in order of name."""
    bytes: int
    """Size of the file, or of all files in the folder."""


def describe(run_dir: Path, kind: str, path: str) -> Artifact:
    """Hashes a published file or folder.

    Args:
        run_dir: The run directory.
        kind: What it is.
        path: Relative to `run_dir`.
    """
    target = run_dir / path
    if target.is_dir():
        files = sorted(file for file in target.rglob("*") if file.is_file())
        listing = "".join(f"{file.relative_to(target).as_posix()} {sha256(file)}\n" for file in files)
        digest = hashlib.sha256(listing.encode()).hexdigest()
        size = sum(file.stat().st_size for file in files)
    else:
        digest, size = sha256(target), target.stat().st_size
    return Artifact(kind=kind, path=path, sha256=digest, bytes=size)


def sha256(path: Path) -> str:
    """Returns the hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def publish(target: Path) -> Iterator[Path]:
    """Yields a staging path that takes the place of `target` when the block ends well.

    The caller creates the staging path as a file or a folder. When the block raises, it is removed and `target`
    stays as it was.

    Raises:
        OSError: The file system refused a write, a flush or the rename (a full disk, say).
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        yield staging
        _open_to_readers(staging)
        _flush(staging)
        _replace(staging, target)
        _flush_folder(target.parent)
    finally:
        _remove(staging)


def write_text(target: Path, text: str) -> None:
    """Writes a text file atomically."""
    with publish(target) as staging:
        staging.write_text(text, encoding="utf-8")


def write_json(target: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically; floats keep every digit."""
    write_text(target, json.dumps(value, ensure_ascii=False, indent=2, sort_keys=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_versioned(path: Path, newest: int) -> tuple[int, dict[str, Any]]:
    """Reads a JSON file that says which schema it follows.

    Args:
        path: Of the file.
        newest: The newest schema that the caller reads.

    Returns:
        The schema, and the rest.

    Raises:
        UserError: It is damaged, or was written by a newer tunerun.
    """
    fix = "Put a copy of it back, or have it written again by what wrote it."
    try:
        data = read_json(path)
    except ValueError as error:
        raise UserError(Problem(where=str(path), what=f"is damaged: {error}.", fix=fix)) from error
    if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
        raise UserError(Problem(where=str(path), what="is damaged: no schema is named in it.", fix=fix))
    schema = data.pop("schema")
    if not 1 <= schema <= newest:
        what = f"was written by a newer tunerun (schema {schema}, this one reads up to {newest})."
        raise UserError(Problem(where=str(path), what=what, fix="Update tunerun."))
    return schema, data


def _open_to_readers(path: Path) -> None:
    """Gives files the rights that the user's umask asks for: some writers make them private to one user."""
    umask = os.umask(0o077)
    os.umask(umask)
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            file.chmod(0o666 & ~umask)


def _flush(path: Path) -> None:
    if path.is_dir():
        for child in path.iterdir():
            _flush(child)
        _flush_folder(path)
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(staging: Path, target: Path) -> None:
    # rename(2) cannot replace a folder that has content: move the old one aside first.
    if target.is_dir() and (staging.is_dir() or not target.is_symlink()):
        old = target.with_name(f".{target.name}.old-{uuid.uuid4().hex[:8]}")
        target.rename(old)
        staging.rename(target)
        if old.is_symlink():
            old.unlink()
        else:
            shutil.rmtree(old)
        return
    staging.replace(target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
