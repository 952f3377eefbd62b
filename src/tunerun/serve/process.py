"""An engine process as its owner sees it: started, spoken to, closed. Used by the gateway and by the terminal chat."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

from tunerun.serve.protocol import EngineSpec, Message, decode, encode, encode_spec

_CHILD = "tunerun.serve.engines.child"
_CLOSE_SECONDS = 3.0


class EngineProcess:
    """A running engine; what it says is handed to callbacks on a thread of its own."""

    def __init__(self, spec: EngineSpec, on_message: Callable[[Message], None], on_exit: Callable[[int], None]) -> None:
        """Starts the process.

        Args:
            spec: What it loads.
            on_message: Gets every message, in order.
            on_exit: Gets the exit code, after the last message; negative for a signal.
        """
        self._socket, theirs = socket.socketpair()
        self._on_message, self._on_exit = on_message, on_exit
        with theirs:
            # -P keeps modules out that happen to lie in the current directory. What a library prints goes to stderr.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _CHILD, encode_spec(spec), str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),
            )
        self._sender = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def send(self, message: Message) -> None:
        """Sends a message; to a process that has ended, nothing is sent, for its end is told to `on_exit`."""
        with self._sender, contextlib.suppress(OSError):
            self._socket.sendall(encode(message))

    def close(self) -> None:
        """Ends the process and waits for it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._socket.close()

    def _read(self) -> None:
        with contextlib.suppress(ConnectionError), self._socket.makefile("rb") as lines:
            for line in lines:
                # A process killed in the middle of a line leaves half of it.
                if line.endswith(b"\n"):
                    self._on_message(decode(line))
        self._on_exit(self._process.wait())


def exit_text(code: int) -> str:
    """Says in words how a process ended."""
    if code >= 0:
        return f"exit code {code}"
    return f"signal {-code} ({signal.Signals(-code).name})"
