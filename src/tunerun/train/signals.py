"""Signals that ask training to stop at the next step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Remembers the first signal; the second one of its kind ends the process as it would have without us."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}

    def note(self, number: int, _: FrameType | None) -> None:
        """Takes a signal."""
        self.signal = signal.Signals(number)
        self.restore()

    def watch(self) -> None:
        """Takes the signals from now on."""
        for number in _SIGNALS:
            signal.signal(number, self.note)

    def restore(self) -> None:
        """Gives the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Watches for SIGTERM, SIGINT and SIGUSR1 within the block; needs the main thread."""
    request = StopRequest()
    request.watch()
    try:
        yield request
    finally:
        request.restore()
