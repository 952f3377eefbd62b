"""Signals that ask training to stop at the next step."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


# A scheduler and the runner may both pass on the same request: only a later signal means impatience.
_SAME_REQUEST_SECONDS = 2.0


class StopRequest:
    """Remembers the first signal; one that comes seconds later does what it would have done without us."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._noted = 0.0
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}

    def note(self, number: int, _: FrameType | None) -> None:
        """Takes a signal."""
        if self.signal is None:
            self.signal, self._noted = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._noted > _SAME_REQUEST_SECONDS:
            self.restore()
            signal.raise_signal(number)

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
