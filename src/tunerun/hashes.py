"""Hashes of input files, remembered by device, inode, size and time of change, so that no file is read twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from tunerun import artifacts, paths
from tunerun.progress import Progress

_SCHEMA = 1
_LIMIT = 10_000
_CHUNK_BYTES = 1 << 22


def files_sha256(files: Sequence[Path], what: str) -> list[str]:
    """Returns the hex digest of each file's bytes.

    Args:
        files: To hash.
        what: Says in the progress what is hashed, such as `model`.

    Raises:
        OSError: A file cannot be read.
    """
    memo = _load()
    known = dict(memo)
    digests: list[str] = []
    unread = sum(file.stat().st_size for file in files if _key(file) not in memo)
    with Progress(f"hash {what}", total=unread, unit="bytes") as progress:
        for file in files:
            key = _key(file)
            # Moved to the end: the memo forgets what was not asked for longest.
            memo[key] = memo.pop(key) if key in memo else _sha256(file, progress)
            digests.append(memo[key])
    if memo != known:
        _save(memo)
    return digests


def folder_sha256(files: Sequence[Path], root: Path, what: str = "model") -> str:
    """Returns one hash over files: of their `name sha256` lines in order of name, as in `artifacts.describe`.

    Args:
        files: Within `root`.
        root: The names are relative to it.
        what: Says in the progress what is hashed.
    """
    ordered = sorted(files)
    digests = files_sha256(ordered, what)
    rows = [f"{file.relative_to(root).as_posix()} {digest}\n" for file, digest in zip(ordered, digests, strict=True)]
    return hashlib.sha256("".join(rows).encode()).hexdigest()


def path_sha256(path: Path, what: str) -> str:
    """Returns what `artifacts.describe` returns for a file or a folder.

    Args:
        path: Of a file or folder.
        what: Says in the progress what is hashed.
    """
    if not path.is_dir():
        return files_sha256([path], what)[0]
    return folder_sha256([file for file in path.rglob("*") if file.is_file()], path, what)


def stat_identity(target: Path) -> str:
    """Returns a text that changes when a file, or anything in a folder, is replaced or changed; nothing is read.

    Raises:
        OSError: It is not there.
    """
    files = sorted(file for file in target.rglob("*") if file.is_file()) if target.is_dir() else [target]
    lines = []
    for file in files:
        stat = file.stat()
        name = file.relative_to(target).as_posix()
        lines.append(f"{name} {stat.st_dev} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def memo_path() -> Path:
    """Returns the file the hashes are remembered in."""
    return paths.user_cache() / "hashes.json"


def _key(file: Path) -> str:
    facts = file.stat()
    return f"{facts.st_dev}:{facts.st_ino}:{facts.st_size}:{facts.st_mtime_ns}"


def _sha256(file: Path, progress: Progress) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            progress.advance(len(chunk))
    return digest.hexdigest()


def _load() -> dict[str, str]:
    try:
        data = json.loads(memo_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # No memo, or a damaged one: it is only a memo.
        return {}
    return dict(data["sha256"]) if isinstance(data, dict) and data.get("schema") == _SCHEMA else {}


def _save(memo: dict[str, str]) -> None:
    newest = dict(list(memo.items())[-_LIMIT:])
    try:
        artifacts.write_json(memo_path(), {"schema": _SCHEMA, "sha256": newest})
    except OSError:
        # A read-only home: every run reads the files again.
        return
