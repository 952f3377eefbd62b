"""The ranks of a stage on this machine, as the runner sees them.

torchrun stands between the runner and the ranks. They tell the runner their process numbers, their steps and how they
end (`tunerun.child`), so that it can signal each of them, notice which one is lost, stopped or silent, and leave none
behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunerun.errors import ExitCode

LOST_SECONDS = 4.0
"""Time that the other ranks have to end by themselves when one is gone."""
STOPPED_SECONDS = 15.0
"""Time that a rank may be stopped (SIGSTOP, Ctrl+Z) before it is given up."""

# After a rank failed, another one that is gone without a word may still have been the cause.
_ECHO_SECONDS = 1.0
_GOOD_CODES = (ExitCode.DONE, ExitCode.PRUNED, ExitCode.PREEMPTED)

STUCK = "a rank failed and the others did not end"
"""What is wrong when a rank has said how it failed, and the others had to be killed."""

# The kernel's states of a process (proc_pid_stat(5)).
_STOPPED, _GONE = "Tt", "ZXx"


@dataclass(slots=True)
class _Rank:
    pid: int
    started: str
    """The kernel's start time: a number that is used again for another process has another one."""
    step: int = 0
    heard: float = 0.0
    code: int | None = None
    gone: float | None = None
    stopped: float | None = None


@dataclass(slots=True)
class RankTable:
    """What is known of the ranks; empty for a stage of one process."""

    stall_seconds: float | None = None
    """Longest time in which no rank tells anything; None waits for ever."""
    clock: Callable[[], float] = time.monotonic
    _ranks: dict[int, _Rank] = field(default_factory=dict)
    _asked: signal.Signals | None = None

    def hear(self, event: Mapping[str, Any]) -> None:
        """Takes what a rank tells."""
        number, now = int(event["rank"]), self.clock()
        if "pid" in event:
            state = _state(event["pid"])
            known = self._ranks.get(number)
            if known is not None and state is not None and (known.pid, known.started) == (event["pid"], state[1]):
                return
            self._ranks[number] = _Rank(event["pid"], "" if state is None else state[1], heard=now)
            if self._asked is not None:
                self._send(self._ranks[number], self._asked)
            return
        rank = self._ranks[number]
        rank.heard = now
        if "step" in event:
            rank.step = event["step"]
        if "code" in event:
            rank.code = event["code"]

    def alive(self) -> None:
        """Takes any other sign of life, such as progress."""
        for rank in self._ranks.values():
            rank.heard = self.clock()

    def ask(self, number: signal.Signals) -> None:
        """Sends a signal to every rank, to those that have not told their numbers yet as soon as they do."""
        self._asked = number
        for rank in self._ranks.values():
            self._send(rank, number)

    def kill(self) -> None:
        """Kills what is left of the ranks, and of what they started."""
        for rank in self._ranks.values():
            if _is(rank):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    # torchrun makes each rank the leader of a session.
                    os.killpg(rank.pid, signal.SIGKILL)

    def fault(self) -> str | None:
        """Looks at the ranks; returns what is wrong when they will not end by themselves."""
        now = self.clock()
        for rank in self._ranks.values():
            state = _state(rank.pid)
            if rank.gone is None and (state is None or state[1] != rank.started or state[0] in _GONE):
                rank.gone = now
            is_stopped = rank.gone is None and state is not None and state[0] in _STOPPED
            rank.stopped = None if not is_stopped else now if rank.stopped is None else rank.stopped
        left = [rank for rank in self._ranks.values() if rank.gone is None]
        broken = [rank.gone for rank in self._ranks.values() if rank.gone is not None and rank.code not in _GOOD_CODES]
        if left and broken and now - min(broken) > LOST_SECONDS:
            return self.lost() or STUCK
        for number, rank in sorted(self._ranks.items()):
            if rank.stopped is not None and now - rank.stopped > STOPPED_SECONDS:
                return f"rank {number} (process {rank.pid}) is stopped (SIGSTOP or Ctrl+Z), and the others wait for it"
        if left and self.stall_seconds is not None and now - max(r.heard for r in left) > self.stall_seconds:
            steps = ", ".join(f"rank {number} in step {rank.step + 1}" for number, rank in sorted(self._ranks.items()))
            return f"no rank told of a step for {self.stall_seconds:.0f} s: {steps}"
        return None

    def lost(self) -> str | None:
        """Names the rank that something killed; None when each one could say how it ended.

        Those that fail because another is gone say so within moments; those that are killed for their sake come later.
        """
        failures = [rank.heard for rank in self._ranks.values() if rank.code not in (None, *_GOOD_CODES)]
        limit = min(failures, default=float("inf")) + _ECHO_SECONDS
        silent = {
            number: rank
            for number, rank in self._ranks.items()
            if rank.code is None and rank.gone is not None and rank.gone <= limit
        }
        if not silent:
            return None
        number, rank = min(silent.items(), key=lambda item: (item[1].gone, item[0]))
        return f"rank {number} (process {rank.pid}) died: something killed it, or it ran out of memory"

    def _send(self, rank: _Rank, number: signal.Signals) -> None:
        if _is(rank):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(rank.pid, number)


def _is(rank: _Rank) -> bool:
    state = _state(rank.pid)
    return state is not None and state[1] == rank.started


def _state(pid: int) -> tuple[str, str] | None:
    """Returns the state and the start time of a process; None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in parentheses, may hold blanks and parentheses.
    fields = text.rpartition(")")[2].split()
    return fields[0], fields[19]
