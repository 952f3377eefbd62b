"""An engine process as its owner sees it: started, spoken to, closed. Used by the gateway and by the terminal chat."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable

from tunerun.serve.protocol import EngineSpec, Message, decode, encode, encode_spec
from tunerun.serve.spawn import Spawned


class EngineProcess:
    """A running engine; what it says is handed to callbacks on a thread of its own."""

    def __init__(
        self,
        spec: EngineSpec,
        on_message: Callable[[Message], None],
        on_exit: Callable[[int], None],
        spawned: Spawned | None = None,
    ) -> None:
        """Starts the process.

        Args:
            spec: What it loads.
            on_message: Gets every message, in order.
            on_exit: Gets the exit code, after the last message; negative for a signal.
            spawned: A process that has been started already; it is closed with this one.
        """
        self._spawned = Spawned() if spawned is None else spawned
        self._on_message, self._on_exit = on_message, on_exit
        self._sender = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._write(encode_spec(spec))

    @property
    def pid(self) -> int:
        """Process id."""
        return self._spawned.process.pid

    def send(self, message: Message) -> None:
        """Sends a message; to a process that has ended, nothing is sent, for its end is told to `on_exit`."""
        self._write(encode(message))

    def close(self) -> None:
        """Ends the process and waits for it."""
        self._spawned.end()
        self._reader.join()
        self._spawned.socket.close()

    def _write(self, line: bytes) -> None:
        with self._sender, contextlib.suppress(OSError):
            self._spawned.socket.sendall(line)

    def _read(self) -> None:
        with contextlib.suppress(ConnectionError), self._spawned.socket.makefile("rb") as lines:
            for line in lines:
                # A process killed in the middle of a line leaves half of it.
                if line.endswith(b"\n"):
                    self._on_message(decode(line))
        self._on_exit(self._spawned.process.wait())


def exit_text(code: int) -> str:
    """Says in words how a process ended."""
    if code >= 0:
        return f"exit code {code}"
    return f"signal {-code} ({signal.Signals(-code).name})"
