"""A node that is not the leader: starts its ranks of a stage whenever the leader says so."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tunerun import artifacts, redact
from tunerun.child import STOP_GRACE_SECONDS
from tunerun.config.credentials import secret_variables, secrets_of
from tunerun.config.schema import RunConfig
from tunerun.errors import ExitCode, StageError
from tunerun.launch import command, nodes, process
from tunerun.launch.command import Node
from tunerun.launch.nodes import Line, Meeting
from tunerun.launch.process import Ended, StopSignals, Supervision
from tunerun.launch.ranks import LOST_SECONDS
from tunerun.launch.terminal import Terminal
from tunerun.launch.waiting import with_wait_policy
from tunerun.plan import plan as plans

_POLL_SECONDS = 0.2


def follow(place: Meeting, config: RunConfig) -> ExitCode:
    """Does what the leader says until it ends.

    Args:
        place: Where the leader is.
        config: What was typed here, for what concerns this machine alone.

    Returns:
        How the run ended.

    Raises:
        StageError: The leader is gone, or its run directory is not here.
        Preempted: A signal came before the leader was found.
    """
    terminal = Terminal(sys.stdout, sys.stderr)
    with StopSignals() as stop:
        terminal.line(f"waiting for the leader at {place.host}:{place.port}")
        line, node, folder = nodes.join(place, lambda: bool(stop.received))
        terminal.line(f"node {node.number} of {place.nodes}; the run is in {folder}")
        try:
            while not stop.received:
                # Looked at first: what was said before the end of a connection is then in the inbox.
                gone = line.lost()
                told = line.receive(_POLL_SECONDS)
                if told is not None and "end" in told:
                    return ExitCode(told["end"])
                if told is not None and "launch" in told:
                    ended = _launch(told["launch"], Path(folder), node, line, stop, config)
                    line.send({"ended": told["attempt"], "error": ended.fault})
                    if stop.received:
                        # The leader is still saving: it must not miss this node.
                        return _end(line)
                elif told is None and gone is not None:
                    raise StageError(_lost(line, gone))
            return ExitCode.PREEMPTED
        finally:
            line.close()


def _end(line: Line) -> ExitCode:
    while (told := line.receive(STOP_GRACE_SECONDS)) is not None and "over" in told:
        pass
    return ExitCode.PREEMPTED if told is None or "end" not in told else ExitCode(told["end"])


def _launch(stage: str, run_dir: Path, node: Node, line: Line, stop: StopSignals, config: RunConfig) -> Ended:
    path = run_dir / artifacts.PLAN
    if not path.is_file():
        raise StageError(f"{path} is not here: the run directory has to be on a disk that all nodes share.")
    step = next(item for item in plans.read(path).steps if item.stage == stage)
    launch = with_wait_policy(command.command(step, run_dir, node=node))

    descriptor = os.open(os.devnull, os.O_RDONLY)
    try:
        return process.run(
            command.hiding(launch, step, secret_variables(config)),
            log=run_dir / artifacts.LOGS / f"{stage}-node{node.number}.log",
            terminal=Terminal(sys.stdout, sys.stderr),
            supervision=Supervision(stop=stop),
            clean=redact.Lines(secrets_of(config, os.environ)),
            # The run's lock is the leader's.
            lock=descriptor,
            stall_seconds=config.hardware.stall_seconds,
            others=_Leader(line).fault,
        )
    finally:
        os.close(descriptor)


@dataclass(slots=True)
class _Leader:
    """The leader, as this node sees it while its ranks work."""

    line: Line
    done: float | None = None
    """When it was found to have no ranks any more."""

    def fault(self) -> str | None:
        """Says why the ranks of this node cannot go on."""
        gone = self.line.lost()
        if gone is not None:
            return _lost(self.line, gone)
        # While they work it says nothing: whatever it says comes after the end of its own ranks. NCCL does not notice
        # that they are gone, and would wait.
        if self.done is None and self.line.has_more():
            self.done = time.monotonic()
        if self.done is None or time.monotonic() - self.done < LOST_SECONDS:
            return None
        return f"the ranks of the leader ({self.line.name}) have ended, and those of this node did not"


def _lost(line: Line, how: str) -> str:
    return f"the leader ({line.name}) is gone: {how}"
