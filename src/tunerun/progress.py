"""Progress of a stage, told to whoever started it.

A stage process writes one JSON object a line to the file descriptor named by `TUNERUN_EVENTS_FD`; the runner turns
them into a bar on a terminal and into a line now and then elsewhere. Without the variable nothing is written.
"""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import Self

from tunerun import child

VERDICTS_FD = "TUNERUN_VERDICTS_FD"
"""Names the descriptor from which a trial of a sweep reads whether it is to go on."""
STEP, LOSS = "step", "eval_loss"
GO_ON, END = b"+", b"-"
_MIN_SECONDS = 0.1


def goes_on(step: int, loss: float) -> bool:
    """Tells a held-out loss to whoever compares this run with others, and returns whether it is worth going on.

    Waits for the answer, so that trials end at the same step whatever the machine is busy with. Without anybody to
    ask, or when they are gone, the work goes on.
    """
    verdicts = child.inherited(VERDICTS_FD, os.O_RDONLY)
    if verdicts is None or not child.tell({STEP: step, LOSS: loss}, child.inherited(child.EVENTS_FD, os.O_WRONLY)):
        return True
    return os.read(verdicts, 1) != END


class Progress:
    """Counts towards a total and reports at most ten times a second.

    Use as a context manager: `with Progress("tokenise", total=1000, unit="rows") as progress: progress.advance(10)`.
    """

    def __init__(self, label: str, *, total: int | None, unit: str) -> None:
        """Starts at zero.

        Args:
            label: What is being done, two words at most.
            total: Where the count ends, or None when unknown.
            unit: Of the count: `rows`, `steps`, `bytes`.
        """
        self.label, self.total, self.unit = label, total, unit
        self.count = 0
        self._started = time.monotonic()
        self._last = 0.0
        # Of several ranks, the first one tells.
        self._descriptor = None if child.rank() else child.inherited(child.EVENTS_FD, os.O_WRONLY)

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Adds to the count; `note` is shown beside it (`loss 1.23`)."""
        self.count += amount
        now = time.monotonic()
        if now - self._last >= _MIN_SECONDS or self.count == self.total:
            self._last = now
            self._send(note)

    def __enter__(self) -> Self:
        self._send("")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._send("", done=True)

    def _send(self, note: str, *, done: bool = False) -> None:
        if self._descriptor is None:
            return
        event = {
            "label": self.label,
            "count": self.count,
            "total": self.total,
            "unit": self.unit,
            "seconds": round(time.monotonic() - self._started, 3),
            "note": note,
            "done": done,
        }
        if not child.tell(event, self._descriptor):
            self._descriptor = None
