"""Checksums of what a run's stages made, so that a file that was changed since is made again.

They are kept in a file of the run directory, read and written under the run's lock; what a stage has just hashed is
taken over. A model is read again only when a file of it was touched.
"""

from __future__ import annotations

from pathlib import Path

from tunerun import artifacts
from tunerun.artifacts import Artifact
from tunerun.hashes import stat_identity

MEMORY = ".hashes.json"


class Checksums:
    """Compares artifacts with what they were when they were made."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        path = run_dir / MEMORY
        # By path: identity and hash.
        self._known: dict[str, list[str]] = artifacts.read_json(path)["known"] if path.exists() else {}

    def match(self, artifact: Artifact) -> bool:
        """Says whether an artifact is there and unchanged.

        Raises:
            OSError: Something in it cannot be read.
        """
        target = self._run_dir / artifact.path
        if not target.exists():
            return False
        identity = stat_identity(target)
        if self._known.get(artifact.path, [""])[0] != identity:
            now = artifacts.describe(self._run_dir, artifact.kind, artifact.path)
            self._known[artifact.path] = [identity, now.sha256]
        return self._known[artifact.path][1] == artifact.sha256

    def remember(self, artifact: Artifact) -> None:
        """Takes over what a stage has just made and hashed."""
        self._known[artifact.path] = [stat_identity(self._run_dir / artifact.path), artifact.sha256]

    def save(self) -> None:
        """Writes what is known of files and folders that are still there."""
        known = {name: value for name, value in self._known.items() if (self._run_dir / name).exists()}
        artifacts.write_json(self._run_dir / MEMORY, {"schema": 1, "known": known})
