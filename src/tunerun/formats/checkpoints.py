"""What tells that a checkpoint is whole, and checkpoints of earlier versions: manifest.json and what it stands for.

Schema 2 had the weights that training goes on with in adapter/ or model/, and their running average, which answered
and was measured, in average.safetensors. Schema 3 has them the other way round. Whoever takes a checkpoint's weights
calls `renew` first, and knows schema 3 alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunerun import artifacts
from tunerun.errors import Problem, UserError

SCHEMA = 3
MANIFEST = "manifest.json"
MOVING = "moving.safetensors"
"""The weights that training goes on with, by parameter, where others are used."""

_AVERAGE = "average.safetensors"


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes what a checkpoint consists of: `progress`, `identity`, and `files` by name with their hashes."""
    whole = {"schema": SCHEMA, **manifest}
    artifacts.write_json(folder / MANIFEST, {**whole, "sha256": _digest(whole)})


def fault(folder: Path) -> str | None:
    """Says why a checkpoint is not whole; None when it is."""
    path = folder / MANIFEST
    if not path.is_file():
        return f"{MANIFEST} is missing"
    try:
        manifest = artifacts.read_json(path)
        schema, files = manifest["schema"], manifest["files"]
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is damaged"
    if isinstance(schema, int) and schema > SCHEMA:
        return f"it was written by a newer version (schema {schema})"
    if schema != 1 and ("sha256" not in manifest or manifest["sha256"] != _digest(manifest)):
        return f"{MANIFEST} is damaged"
    for name, digest in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if artifacts.sha256(folder / name) != digest:
            return f"{name} is damaged"
    return None


def renew(folder: Path) -> None:
    """Rewrites a checkpoint of schema 2 that holds an average as one of schema 3; does nothing with anything else.

    Args:
        folder: A checkpoint's, or any other.

    Raises:
        UserError: It is damaged, its weights are not those of its average, or it cannot be written.
    """
    if not _holds_average(folder):
        return
    try:
        with _alone(folder.parent):
            if _holds_average(folder):
                _renew(folder)
    except OSError as error:
        what = f"keeps its average as an earlier version did, and cannot be rewritten: {error.strerror}."
        fix = "Copy the run to where there is room and it may be written, and name the copy."
        raise UserError(Problem(where=str(folder), what=what, fix=fix)) from error


def _holds_average(folder: Path) -> bool:
    return (folder / _AVERAGE).is_file() and (folder / MANIFEST).is_file()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets one process at a time into the block, among those that name the same folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _renew(folder: Path) -> None:
    found = fault(folder)
    if found is not None:
        raise UserError(Problem(where=str(folder), what=f"{found}.", fix="Take another checkpoint."))
    manifest = artifacts.read_json(folder / MANIFEST)
    with artifacts.publish(folder) as staging:
        shutil.copytree(folder, staging)
        (staging / _AVERAGE).rename(staging / MOVING)
        # Loads numpy, which whoever only looks whether there is something to do has no use for.
        from tunerun.formats.averages import swap

        swap(staging / MOVING, staging, told=folder)
        names = {MOVING if name == _AVERAGE else name for name in manifest["files"]}
        files = {name: artifacts.sha256(staging / name) for name in sorted(names)}
        write_manifest(staging, {"progress": manifest["progress"], "identity": manifest["identity"], "files": files})


def _digest(manifest: Mapping[str, Any]) -> str:
    text = json.dumps({key: value for key, value in manifest.items() if key != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
