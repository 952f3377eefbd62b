"""Keeps every reply the moment it comes, so that no prompt is paid for twice.

A file of JSON lines that only grows: `{"key": ..., "reply": ...}`. The key is the hash of the request, so a reply is
found again whenever the same would be asked: after a stop, after rows were added or moved, and after settings were
changed and changed back.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tunerun.data.answer import reply
from tunerun.data.answer.reply import Reply

_FLUSH_SECONDS = 1.0


class Journal:
    """Replies by the key of their request; from `open_journal`."""

    def __init__(self, file: BinaryIO, known: dict[str, Reply], damaged: int) -> None:
        """Takes a file that is at its end."""
        self._file, self._known, self._flushed = file, known, time.monotonic()
        self.damaged = damaged
        """Lines that could not be read; what they held is asked again."""

    def __len__(self) -> int:
        return len(self._known)

    def find(self, key: str) -> Reply | None:
        """Returns the reply to a request, if it is known."""
        return self._known.get(key)

    def add(self, key: str, found: Reply) -> None:
        """Keeps a reply: a killed process loses none, a machine that loses power at most the last second's."""
        self._known[key] = found
        line = json.dumps({"key": key, "reply": reply.to_json(found)}, ensure_ascii=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        now = time.monotonic()
        if now - self._flushed >= _FLUSH_SECONDS:
            os.fsync(self._file.fileno())
            self._flushed = now


@contextmanager
def open_journal(path: Path, other: Path | None = None) -> Iterator[Journal]:
    """Opens a journal and reads what it knows.

    Args:
        path: The file; made when there is none.
        other: A journal to begin with when there is none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if other is not None and not path.exists():
        shutil.copyfile(other, path)
    with path.open("a+b") as file:
        known, end, damaged = _read(file)
        # A kill cuts the last line off: what follows must not be glued to it.
        file.truncate(end)
        file.seek(0, os.SEEK_END)
        try:
            yield Journal(file, known, damaged)
        finally:
            file.flush()
            os.fsync(file.fileno())


def _read(file: BinaryIO) -> tuple[dict[str, Reply], int, int]:
    """Returns the replies, where the last whole line ends, and how many lines cannot be read."""
    known: dict[str, Reply] = {}
    end = damaged = 0
    file.seek(0)
    for line in file:
        if not line.endswith(b"\n"):
            break
        end += len(line)
        try:
            data = json.loads(line)
            known[data["key"]] = reply.from_json(data["reply"])
        except (ValueError, KeyError, TypeError):
            damaged += 1
    return known, end, damaged
