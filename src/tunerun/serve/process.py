"""An engine process as its owner sees it: started, spoken to, closed. Used by the gateway and by the terminal chat."""

from __future__ import annotations

import contextlib
import signal
import threading

from tunerun.serve.protocol import EngineSpec, Message, decode, encode, encode_spec
from tunerun.serve.spawn import Spawned

_READ_BYTES = 1 << 18


class EngineProcess:
    """A running engine. A selector that watches it tells when `read` has something to return."""

    def __init__(self, spec: EngineSpec, spawned: Spawned | None = None) -> None:
        """Starts the process.

        Args:
            spec: What it loads.
            spawned: A process that has been started already; it is closed with this one.
        """
        self._spawned = Spawned() if spawned is None else spawned
        self._sender = threading.Lock()
        self._begun = b""
        self._write(encode_spec(spec))

    @property
    def pid(self) -> int:
        """Process id."""
        return self._spawned.process.pid

    def fileno(self) -> int:
        """Returns the descriptor that its messages come from."""
        return self._spawned.socket.fileno()

    def send(self, message: Message) -> None:
        """Sends a message; to a process that has ended, nothing is sent, for `read` tells that it has."""
        self._write(encode(message))

    def read(self) -> list[Message] | None:
        """Waits until it says something, once; returns the messages that are complete, or None when it has ended."""
        try:
            found = self._spawned.socket.recv(_READ_BYTES)
        except OSError:
            found = b""
        if not found:
            # A process killed in the middle of a line leaves half of it.
            return None
        *lines, self._begun = (self._begun + found).split(b"\n")
        return [decode(line) for line in lines]

    def wait(self) -> int:
        """Waits for its end; returns the exit code, negative for a signal."""
        return self._spawned.process.wait()

    def close(self) -> None:
        """Ends the process and waits for it."""
        self._spawned.end()
        self._spawned.socket.close()

    def _write(self, line: bytes) -> None:
        with self._sender, contextlib.suppress(OSError):
            self._spawned.socket.sendall(line)


def exit_text(code: int) -> str:
    """Says in words how a process ended."""
    if code >= 0:
        return f"exit code {code}"
    return f"signal {-code} ({signal.Signals(-code).name})"
