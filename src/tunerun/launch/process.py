"""Runs one child process: streams what it says, passes signals on, and leaves nothing of it behind.

The child leads a session of its own, so that Ctrl+C in a terminal reaches only the runner. It inherits three
descriptors: where to write progress events, the read end of a pipe whose write end only the runner holds (its end of
file tells the child that the runner died, whatever killed it), and the run's lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol, Self, TextIO

from tunerun.child import EVENTS_FD, PARENT_FD, STOP_GRACE_SECONDS
from tunerun.launch.command import Launch
from tunerun.launch.ranks import RankTable
from tunerun.launch.terminal import Event, Terminal
from tunerun.progress import END, GO_ON, LOSS, STEP, VERDICTS_FD

_POLL_SECONDS = 0.1
_EXIT_POLL_SECONDS = 0.005
_CHUNK_BYTES = 1 << 16
# SIGUSR1 is how Slurm says that the time limit is near.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a child ended."""

    exit_code: int
    """Its code, or the negative number of the signal that killed it."""
    seconds: float
    """Wall-clock time it took."""
    fault: str | None = None
    """What became of a rank that could not say so itself."""


class StopSignals:
    """Counts SIGINT, SIGTERM, SIGHUP and SIGUSR1 instead of dying of them, while it is entered."""

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self._previous: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            # nohup ignores the hang-up, and it stays ignored. A script's `tunerun ... &` ignores SIGINT, but whoever
            # sends it there by hand means it.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 (the interpreter's signature)
        self.received.append(signal.Signals(number))


Judge = Callable[[int, float], bool]
"""Says whether a run is worth going on with after a step with a held-out loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """A process to start, in a session of its own and with nothing to read."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    """All of its environment, but for `named`."""
    output: int
    errors: int
    named: Mapping[str, int]
    """Descriptors that it finds by a variable of its environment."""
    held: tuple[int, ...]
    """Descriptors that it keeps open and does not use."""


class Process(Protocol):
    """A process that was started; a `subprocess.Popen` is one."""

    pid: int
    """Also the number of its process group."""
    returncode: int | None
    """Its code, or the negative number of the signal that killed it; None as long as nobody saw its end."""

    def poll(self) -> int | None:
        """Returns the code, or None while it runs."""

    def wait(self) -> int:
        """Waits for its end."""

    def send_signal(self, number: int, /) -> None:
        """Sends a signal."""


def spawn(wanted: Start) -> Process:
    """Starts a fresh process.

    Raises:
        OSError: The program could not be started.
    """
    named = {name: str(descriptor) for name, descriptor in wanted.named.items()}
    return subprocess.Popen(
        wanted.argv,
        stdin=subprocess.DEVNULL,
        stdout=wanted.output,
        stderr=wanted.errors,
        env={**wanted.env, **named},
        start_new_session=True,
        pass_fds=(*wanted.named.values(), *wanted.held),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Supervision:
    """Who looks after the children of a run: a sweep does so for all its trials at once."""

    stop: StopSignals
    """Signals received so far, and from now on."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables set on top of each launch's own."""
    judge: Judge | None = None
    """Asked by training after each measurement; None lets it go on."""
    start: Callable[[Start], Process] = spawn
    """Starts a process."""


def signal_name(number: int) -> str:
    """Returns a signal's name, such as `SIGKILL`."""
    try:
        return signal.Signals(number).name
    except ValueError:
        # Real-time signals have numbers only.
        return f"signal {number}"


def run(
    launch: Launch,
    *,
    log: Path,
    terminal: Terminal,
    supervision: Supervision,
    clean: Callable[[str], str],
    lock: int,
    grace_seconds: float = STOP_GRACE_SECONDS,
    stall_seconds: float | None = None,
    others: Callable[[], str | None] | None = None,
) -> Ended:
    """Runs a child to its end.

    The first signal is passed to the child, or to each of its ranks, as SIGTERM; a second one, or `grace_seconds`
    without an end, kills it and its whole process group. What is left of the group when the child ends is killed too,
    and so are all ranks when one of them is lost.

    Args:
        launch: Command line and environment.
        log: File that every line of output is appended to.
        terminal: Shows the lines and the progress.
        supervision: Whose signals stop it, and who judges it.
        clean: Takes secrets out of a line.
        lock: Descriptor of the run's lock, held by the child as long as it lives.
        grace_seconds: Longest time between the first signal and the kill.
        stall_seconds: Longest time in which no rank tells anything; None waits for ever.
        others: Says what is wrong with another node; None without other nodes.

    Raises:
        OSError: The program could not be started, or the log could not be written; no child is left.
    """
    started, ranks = time.monotonic(), RankTable(stall_seconds)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as log_file, _spawned(launch, lock, supervision) as child:
        ears = _Ears(child, log_file, terminal, clean, ranks, supervision.judge)
        watch = _Watch(supervision.stop, terminal, grace_seconds, ranks if launch.ranks else None, others)
        try:
            fault = _follow(child, ears.consumers(), watch)
        finally:
            ranks.kill()
        terminal.clear()
    code = child.process.returncode
    assert code is not None, "its end was waited for"
    return Ended(exit_code=code, seconds=time.monotonic() - started, fault=fault)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Child:
    process: Process
    output: int
    errors: int
    events: int
    verdicts: int


@dataclass(frozen=True, slots=True)
class _Ears:
    """Takes what a child says, line by line."""

    child: _Child
    log: TextIO
    terminal: Terminal
    clean: Callable[[str], str]
    ranks: RankTable
    judge: Judge | None

    def consumers(self) -> dict[int, Callable[[bytes], None]]:
        """Returns what takes the lines of each descriptor."""
        return {
            self.child.output: partial(self._say, error=False),
            self.child.errors: partial(self._say, error=True),
            self.child.events: self._event,
        }

    def _say(self, line: bytes, *, error: bool) -> None:
        # A carriage return rewrites a line: only its last state is kept.
        text = self.clean(line.decode("utf-8", "replace").rstrip("\r\n").rsplit("\r", 1)[-1])
        self.log.write(text + "\n")
        self.log.flush()
        self.terminal.line(text, error=error)

    def _event(self, line: bytes) -> None:
        data = json.loads(line)
        if "rank" in data:
            self.ranks.hear(data)
            return
        self.ranks.alive()
        if LOSS in data:
            self._answer(data)
        else:
            self.terminal.event(Event.from_json(data))

    def _answer(self, measured: Mapping[str, Any]) -> None:
        assert self.judge is not None, "a child without a judge does not ask"
        verdict = GO_ON if self.judge(measured[STEP], measured[LOSS]) else END
        # A child that was killed in the meantime waits for no answer.
        with contextlib.suppress(BrokenPipeError):
            os.write(self.child.verdicts, verdict)


def environment(launch: Launch, on_top: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that a process gets.

    Args:
        launch: How it is started.
        on_top: Set on top of the launch's own.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in launch.without}
    return {**inherited, **launch.env, **on_top}


@contextlib.contextmanager
def _spawned(launch: Launch, lock: int, supervision: Supervision) -> Iterator[_Child]:
    with contextlib.ExitStack() as stack:
        (output, output_end), (errors, errors_end), (events, events_end), (alive, alive_end), (asked, verdicts) = (
            os.pipe() for _ in range(5)
        )
        for descriptor in (output, errors, events, alive_end, verdicts):
            stack.callback(os.close, descriptor)
        verdict = {} if supervision.judge is None else {VERDICTS_FD: asked}
        wanted = Start(
            argv=launch.argv,
            env=environment(launch, supervision.env),
            output=output_end,
            errors=errors_end,
            named={EVENTS_FD: events_end, PARENT_FD: alive, **verdict},
            held=(lock,),
        )
        try:
            process = supervision.start(wanted)
        finally:
            for descriptor in (output_end, errors_end, events_end, alive, asked):
                os.close(descriptor)
        stack.callback(_end, process)
        yield _Child(process=process, output=output, errors=errors, events=events, verdicts=verdicts)


@dataclass(slots=True)
class _Watch:
    """When a child is to be signalled or killed."""

    stop: StopSignals
    terminal: Terminal
    grace_seconds: float
    ranks: RankTable | None
    others: Callable[[], str | None] | None = None
    deadline: float | None = None
    fault: str | None = None

    def look(self, process: Process) -> None:
        """Does what is due."""
        if self.stop.received and self.deadline is None:
            self.deadline = time.monotonic() + self.grace_seconds
            if self.ranks is None:
                process.send_signal(signal.SIGTERM)
            else:
                self.ranks.ask(signal.SIGTERM)
            name, limit = self.stop.received[0].name, f"{self.grace_seconds:.0f} s"
            self.terminal.line(f"{name}: stopping within {limit}; a second signal kills at once", error=True)
        if self.ranks is not None and self.fault is None:
            self.fault = (self.others() if self.others is not None else None) or self.ranks.fault()
        late = self.deadline is not None and time.monotonic() > self.deadline
        if len(self.stop.received) > 1 or late or self.fault is not None:
            _kill_group(process)

    def last_words(self) -> str | None:
        """Returns what became of a rank that could not say so itself, when all have ended."""
        if self.ranks is None or self.fault is not None or self.stop.received:
            return self.fault
        return (self.others() if self.others is not None else None) or self.ranks.fault() or self.ranks.lost()


def _follow(child: _Child, consumers: Mapping[int, Callable[[bytes], None]], watch: _Watch) -> str | None:
    """Hands over what a child writes until it ends; returns what became of a rank that could not say so itself."""
    buffers = dict.fromkeys(consumers, b"")
    with selectors.DefaultSelector() as selector:
        for descriptor in consumers:
            os.set_blocking(descriptor, False)
            selector.register(descriptor, selectors.EVENT_READ)
        while child.process.poll() is None:
            for key, _ in selector.select(_POLL_SECONDS if selector.get_map() else _EXIT_POLL_SECONDS):
                if _read_lines(key.fd, buffers, consumers[key.fd]) == b"":
                    selector.unregister(key.fd)
            watch.look(child.process)
    # Whatever the child left running goes before the pipes are drained: it could hold them open for ever.
    _kill_group(child.process)
    for descriptor, consume in consumers.items():
        while _read_lines(descriptor, buffers, consume):
            pass
        if buffers[descriptor]:
            consume(buffers[descriptor])
    return watch.last_words()


def _read_lines(descriptor: int, buffers: dict[int, bytes], consume: Callable[[bytes], None]) -> bytes | None:
    """Hands over the complete lines that can be read; returns what was read: b"" at the end, None when nothing yet."""
    try:
        chunk = os.read(descriptor, _CHUNK_BYTES)
    except BlockingIOError:
        return None
    *lines, buffers[descriptor] = (buffers[descriptor] + chunk).split(b"\n")
    for line in lines:
        consume(line)
    return chunk


def _end(process: Process) -> None:
    _kill_group(process)
    process.wait()


def _kill_group(process: Process) -> None:
    # The group outlives its leader as long as it has members; then its number means nothing.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
