"""What a stage process and the runner that started it agree on: how to stop, and how to notice that the other is gone.

A stage of several processes (ranks) is started by torchrun, which stands between them and the runner: it passes neither
descriptors nor exit codes on. Ranks take the descriptors from it themselves and tell the runner their process numbers,
each optimiser step and how they end.

Standard library only.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import threading
import time
from types import FrameType

PARENT_FD = "TUNERUN_PARENT_FD"
"""Names the read end of a pipe whose write end only the runner holds."""
STOP_GRACE_SECONDS = 30.0
"""Time a stage has to save its work after a signal, before it is killed."""


EVENTS_FD = "TUNERUN_EVENTS_FD"
"""Names the write end of a pipe that takes one JSON object a line, of progress or of a rank."""
_UNDER_TORCHRUN = "TORCHELASTIC_RUN_ID"


class Stopped(BaseException):
    """A signal arrived in a stage that has no way of its own to stop.

    Not an `Exception`: a library that retries after any error must not swallow it.
    """


def stop_on_signals() -> None:
    """Makes SIGINT and SIGTERM raise `Stopped`, so that staging files are removed on the way out.

    A stage that can save its work replaces these handlers by its own.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


def rank() -> int | None:
    """Returns this process's number among the ranks of a stage; None for a stage of one process."""
    return int(os.environ["RANK"]) if _UNDER_TORCHRUN in os.environ else None


def inherited(name: str, flags: int) -> int | None:
    """Returns a descriptor from the runner, or None without one.

    Args:
        name: Variable that has its number.
        flags: How it is opened, such as `os.O_WRONLY`.
    """
    number = os.environ.get(name)
    if number is None:
        return None
    if rank() is None:
        return int(number)
    try:
        return _opened(f"/proc/{os.getppid()}/fd/{number}", flags)
    except OSError:
        # torchrun was started by hand.
        return None


@functools.cache
def _opened(path: str, flags: int) -> int:
    return os.open(path, flags)


def tell(event: dict[str, object], descriptor: int | None) -> bool:
    """Sends an event to the runner; returns whether somebody may still be listening."""
    if descriptor is None:
        return False
    try:
        # A line this short is written whole or not at all (POSIX, PIPE_BUF).
        os.write(descriptor, (json.dumps(event) + "\n").encode())
    except OSError:
        # The reader is gone (the runner was killed): the work goes on untold.
        return False
    return True


class RankReport:
    """Tells the runner what a rank does; without ranks or without a runner it does nothing."""

    def __init__(self) -> None:
        self._number = rank()
        self._descriptor = None if self._number is None else inherited(EVENTS_FD, os.O_WRONLY)
        self._tell(pid=os.getpid())

    def step(self, number: int) -> None:
        """Says that an optimiser step begins."""
        self._tell(step=number)

    def end(self, code: int) -> None:
        """Says how the rank ends."""
        self._tell(code=code)

    def _tell(self, **event: object) -> None:
        if self._descriptor is not None:
            tell({"rank": self._number, **event}, self._descriptor)


def watch_parent() -> None:
    """Stops this process when the runner dies of anything, `kill -9` included; without a runner it does nothing."""
    descriptor = inherited(PARENT_FD, os.O_RDONLY)
    if descriptor is not None:
        threading.Thread(target=_await_death, args=(descriptor,), daemon=True).start()


def _await_death(descriptor: int) -> None:
    while os.read(descriptor, 1):
        pass
    # Nobody reads the output any more: a print while the work is saved must not fail.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (the interpreter's signature)
    raise Stopped(signal.Signals(number).name)
