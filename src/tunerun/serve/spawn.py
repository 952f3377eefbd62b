"""Starts an engine's process, which imports what all engines need while its owner finds out what it has to load.

Imports little itself, so that a command can start the process first of all.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from typing import Self

_CHILD = "tunerun.serve.engines.child"
_CLOSE_SECONDS = 3.0


class Spawned:
    """A process that waits for what it has to load; use as a context manager, or call `end`."""

    def __init__(self) -> None:
        """Starts it."""
        self.socket, theirs = socket.socketpair()
        with theirs:
            # -P keeps modules out that happen to lie in the current directory. What a library prints goes to stderr.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", _CHILD, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),
            )

    def end(self) -> None:
        """Ends the process, if it has not ended, and waits for it."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        try:
            self.process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self.socket.close()
