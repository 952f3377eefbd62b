"""What a stage process and the runner that started it agree on: how to stop, and how to notice that the other is gone.

Standard library only.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

PARENT_FD = "TUNERUN_PARENT_FD"
"""Names the read end of a pipe whose write end only the runner holds."""
STOP_GRACE_SECONDS = 30.0
"""Time a stage has to save its work after a signal, before it is killed."""


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


def watch_parent() -> None:
    """Stops this process when the runner dies of anything, `kill -9` included; without a runner it does nothing."""
    descriptor = os.environ.get(PARENT_FD)
    if descriptor is not None:
        threading.Thread(target=_await_death, args=(int(descriptor),), daemon=True).start()


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
