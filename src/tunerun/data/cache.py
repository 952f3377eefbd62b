"""Prepared data, kept in the user's cache by what they were made from, so that the same data are prepared once.

An entry is a folder named by its key: the content of `data/` of a run, and `entry.json` with the hash of each file,
written last. Runs take hard links, so a hit costs neither time nor space. A changed file is seen by its hash, which is
remembered by inode and time of change.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import tunerun
from tunerun import artifacts, hashes, paths
from tunerun.data.rows import DataFile
from tunerun.plan import step_keys
from tunerun.plan.steps import DataStep

LIMIT_BYTES = 20 << 30
"""Entries used least recently are removed when all together are larger."""

_SCHEMA = 1
_ENTRY = "entry.json"
# What decides the bytes of an entry, besides files, tokenizer and settings.
_WEIGHTS_INDEX = ".index.json"
_CODE = ("data", "chat", "formats/tokens.py", "formats/pairs.py")
_PACKAGES = ("jinja2", "numpy", "openpyxl", "pyarrow", "tokenizers")


def key_of(step: DataStep, files: Sequence[DataFile], model: Path) -> str:
    """Returns the name of the entry that a step's data have.

    Args:
        step: What to do.
        files: All that it reads, for training and evaluation.
        model: Folder of the base model, whose tokenizer and chat template are used.

    Raises:
        OSError: A file cannot be read.
    """
    found = [*sorted(model.glob("*.json*")), *sorted(model.rglob("*.jinja"))]
    used = [file for file in found if not file.name.endswith(_WEIGHTS_INDEX)]
    if step.chat_template is not None and Path(step.chat_template).is_file():
        used.append(Path(step.chat_template))
    names = [file.relative_to(model).as_posix() if file.is_relative_to(model) else "" for file in used]
    # A file that is read from its hub as it comes is known by its commit.
    kept = [file for file in files if not file.streamed]
    digests = hashes.files_sha256([file.path for file in kept] + used, "data")
    facts = {
        "schema": _SCHEMA,
        "version": tunerun.__version__,
        "code": _code_sha256(),
        "packages": [importlib.metadata.version(name) for name in _PACKAGES],
        "settings": step_keys.fingerprint_keys(step),
        "files": [repr(file) for file in files],
        "digests": digests[: len(kept)],
        "model": [[name, digest] for name, digest in zip(names, digests[len(kept) :], strict=True)],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def take(key: str, folder: Path) -> bool:
    """Fills a folder with an entry's files.

    Args:
        key: From `key_of`.
        folder: Does not exist yet; is not made when there is no such entry.

    Returns:
        Whether there is an entry, and it is as it was written.
    """
    entry = _folder() / key
    try:
        listed = _listed(entry)
        if listed is None or not _unchanged(entry, listed):
            return False
        for name in listed:
            _link(entry / name, folder / name)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        # An entry that is gone was removed by another process just now.
        if not isinstance(error, FileNotFoundError):
            print(f"data: prepared before, but cannot be taken from the cache: {error.strerror or error} ({entry})")
        return False
    # A cache on a read-only disk serves all the same; nothing is removed from it by age either.
    with suppress(OSError):
        os.utime(entry)
    return True


def keep(key: str, folder: Path) -> None:
    """Makes an entry of a folder's files; it replaces an entry that was damaged.

    A cache that cannot be written costs the next run time and is not an error.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    names = [file.relative_to(folder).as_posix() for file in files]
    try:
        with artifacts.publish(_folder() / key) as staging:
            for file, name in zip(files, names, strict=True):
                _link(file, staging / name)
            digests = hashes.files_sha256([staging / name for name in names], "data")
            listed = dict(zip(names, digests, strict=True))
            artifacts.write_json(staging / _ENTRY, {"schema": _SCHEMA, "files": listed})
        _remove_oldest(keep=key)
    except OSError as error:
        print(f"data: not kept for later runs: {error.strerror or error} ({_folder()})")


@contextmanager
def one_at_a_time(key: str) -> Iterator[None]:
    """Waits while another process of this machine prepares the same data, which is then found in the cache."""
    folder = _folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / f".{key}.lock").open("w")
    except OSError:
        # Nothing can be kept there either.
        yield
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("data: another run prepares the same data; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            # Some network file systems have no locks: runs at the same time then prepare the data each for itself.
            print(f"data: {folder} has no locks: another run may prepare the same data now")
        try:
            yield
        finally:
            (folder / f".{key}.lock").unlink(missing_ok=True)


def _folder() -> Path:
    return paths.user_cache() / "data"


@cache
def _code_sha256() -> str:
    package = Path(tunerun.__file__).parent
    digest = hashlib.sha256()
    for part in _CODE:
        target = package / part
        for file in sorted(target.rglob("*.*")) if target.is_dir() else [target]:
            if file.suffix in (".py", ".jinja"):
                digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _listed(entry: Path) -> dict[str, str] | None:
    try:
        found: Any = artifacts.read_json(entry / _ENTRY)
    except (OSError, ValueError):
        return None
    return dict(found["files"]) if isinstance(found, dict) and found.get("schema") == _SCHEMA else None


def _unchanged(entry: Path, listed: dict[str, str]) -> bool:
    names = list(listed)
    return hashes.files_sha256([entry / name for name in names], "data") == [listed[name] for name in names]


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except OSError as error:
        # Another file system, one without links, or one that allows them to the owner only.
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
            raise
        shutil.copyfile(source, target)


def _remove_oldest(keep: str) -> None:
    entries = [entry for entry in _folder().iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    sizes = {entry: sum(file.stat().st_size for file in entry.rglob("*") if file.is_file()) for entry in entries}
    total = sum(sizes.values())
    for entry in sorted(entries, key=lambda entry: entry.stat().st_mtime):
        if total <= LIMIT_BYTES or entry.name == keep:
            continue
        total -= sizes[entry]
        shutil.rmtree(entry, ignore_errors=True)
