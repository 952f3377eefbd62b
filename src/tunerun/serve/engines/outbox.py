"""Messages on their way to the gateway; text that comes faster than anybody reads travels in fewer pieces."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

from tunerun.serve.protocol import Message, Text, encode

INTERVAL_SECONDS = 0.02
"""Between two sendings of text: an engine that is slower sends each token at once."""


class Outbox:
    """Sends messages, from any thread, in the order in which they came."""

    def __init__(self, connection: socket.socket) -> None:
        """Takes the socket to the gateway."""
        self._connection = connection
        self._changed = threading.Condition()
        self._held: dict[int, Text] = {}
        self._told = 0.0
        threading.Thread(target=self._send_in_time, daemon=True).start()

    def send(self, message: Message) -> None:
        """Sends a message at once; only text may wait, for `INTERVAL_SECONDS` at most."""
        with self._changed:
            if not isinstance(message, Text):
                self._flush(message)
                return
            begins = not self._held
            self._hold(message)
            if time.monotonic() - self._told >= INTERVAL_SECONDS:
                self._flush()
            elif begins:
                self._changed.notify()

    def _hold(self, text: Text) -> None:
        before = self._held.get(text.id)
        if before is not None:
            text = Text(id=text.id, text=before.text + text.text, scores=before.scores + text.scores)
        self._held[text.id] = text

    def _flush(self, *after: Message) -> None:
        """Sends what is held, and then other messages."""
        if self._held:
            self._told = time.monotonic()
        lines = b"".join(map(encode, (*self._held.values(), *after)))
        self._held.clear()
        # A gateway that is gone ends the process: whoever reads its messages sees to that.
        with contextlib.suppress(ConnectionError):
            self._connection.sendall(lines)

    def _send_in_time(self) -> None:
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._held)
                left = self._told + INTERVAL_SECONDS - time.monotonic()
                if left > 0:
                    self._changed.wait(left)
                else:
                    self._flush()
