"""Content hashes that are computed once: remembered by device, inode, size and time of change.

The memory is a file of the run directory, read and written under the run's lock.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from tunerun import artifacts

MEMORY = ".hashes.json"


class Hashes:
    """Hashes files and folders, and remembers what they hashed to."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / MEMORY
        self._known: dict[str, str] = artifacts.read_json(self._path)["known"] if self._path.exists() else {}
        self._used: dict[str, str] = {}

    def sha256(self, target: Path) -> str:
        """Returns what `artifacts.describe` returns for a file or folder.

        Raises:
            OSError: Something in it cannot be read.
        """
        identity = stat_identity(target)
        if identity not in self._known:
            self._known[identity] = artifacts.describe(target.parent, "", target.name).sha256
        self._used[identity] = self._known[identity]
        return self._known[identity]

    def remember(self, target: Path, digest: str) -> None:
        """Takes over a hash that a stage has just computed."""
        identity = stat_identity(target)
        self._known[identity] = self._used[identity] = digest

    def save(self) -> None:
        """Writes what was asked for since the start; the rest belongs to files that are gone or changed."""
        artifacts.write_json(self._path, {"schema": 1, "known": self._used})


def stat_identity(target: Path) -> str:
    """Returns a text that changes when a file, or anything in a folder, is replaced or changed.

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
