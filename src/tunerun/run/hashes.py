"""Content hashes that are computed once: remembered by device, inode, size and time of change.

The memory is a file of the run directory, read and written under the run's lock; it also takes over what stages have
just hashed. `tunerun.hashes` remembers models and data, which all runs of a user share, in the user's cache.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from tunerun import artifacts

MEMORY = ".hashes.json"


class Hashes:
    """Hashes files and folders, and remembers what they hashed to."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        path = run_dir / MEMORY
        # By path: identity and hash.
        self._known: dict[str, list[str]] = artifacts.read_json(path)["known"] if path.exists() else {}

    def sha256(self, target: Path) -> str:
        """Returns what `artifacts.describe` returns for a file or folder.

        Raises:
            OSError: Something in it cannot be read.
        """
        name, identity = self._name(target), stat_identity(target)
        if name not in self._known or self._known[name][0] != identity:
            self._known[name] = [identity, artifacts.describe(target.parent, "", target.name).sha256]
        return self._known[name][1]

    def remember(self, target: Path, digest: str) -> None:
        """Takes over a hash that a stage has just computed."""
        self._known[self._name(target)] = [stat_identity(target), digest]

    def save(self) -> None:
        """Writes what is known of files and folders that are still there."""
        known = {name: value for name, value in self._known.items() if (self._run_dir / name).exists()}
        artifacts.write_json(self._run_dir / MEMORY, {"schema": 1, "known": known})

    def _name(self, target: Path) -> str:
        inside = target.is_relative_to(self._run_dir)
        return str(target.relative_to(self._run_dir) if inside else target.absolute())


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
