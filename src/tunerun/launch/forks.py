"""Starts stages as copies of a process that has imported what they need: the near side of `tunerun.fork_server`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tunerun.launch.command import THREAD_VARIABLES, alone
from tunerun.launch.process import Process, Start, spawn

# Stages whose imports are kept by one process.
_STAGES = ("model", "data", "train", "eval")
# Those that compute nothing, so that the number of threads means nothing to them.
_LIGHT = ("model", "data")
# Read when they are used, not when a library is imported, so that a copy may change them.
_LATE = frozenset({"TOKENIZERS_PARALLELISM", "CUDA_VISIBLE_DEVICES"})
# Differ with what the machine was doing, and change no result: the first stage's serve all.
_SPEED_ONLY = frozenset({"OMP_WAIT_POLICY"})
_POLL_SECONDS = 0.005


class Forked:
    """A process that the server forked; it is no child of ours, so the server tells how it ended."""

    def __init__(self, report: int) -> None:
        """Waits for the first answer, which comes when the server has done its imports.

        Raises:
            EOFError: The server died.
        """
        first, _, self._told = os.read(report, 64).partition(b"\n")
        if not first:
            os.close(report)
            raise EOFError("the fork server died")
        self.pid = int(first)
        self.returncode: int | None = None
        self._report = report
        os.set_blocking(report, False)

    def poll(self) -> int | None:
        """Returns how it ended, or None while it runs."""
        if self.returncode is None:
            try:
                told = self._told or os.read(self._report, 64)
            except BlockingIOError:
                return None
            self.returncode = int(told) if told else -signal.SIGKILL
            if not told:
                # The server died, and nobody could say how this one ends.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
            os.close(self._report)
        return self.returncode

    def wait(self) -> int:
        """Waits for its end."""
        while self.poll() is None:
            time.sleep(_POLL_SECONDS)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


_Key = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Server:
    process: subprocess.Popen[bytes]
    requests: socket.socket

    def is_ready(self) -> bool:
        """Says whether its imports are done, so that it answers at once."""
        try:
            return bool(self.requests.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except (BlockingIOError, ConnectionResetError):
            return False

    def close(self) -> None:
        if self.is_ready():
            # What is left unread would be an error at the other end.
            self.requests.recv(1)
        else:
            # It would finish its imports first.
            self.process.kill()
        self.requests.close()
        self.process.wait()


@dataclass(slots=True)
class ForkServers:
    """One server for each environment that stages ask for; while it is entered.

    `start` is what a run's supervision takes. A server that died is started again by the next stage.
    """

    _servers: dict[_Key, _Server] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._servers:
            self._servers.popitem()[1].close()

    def begin(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Starts the server of a stage that will be asked for, if there is none: it imports while other work goes on.

        Args:
            argv: Command line of the stage; one that gets a fresh process starts nothing.
            env: Its environment.

        Raises:
            OSError: It could not be started.
        """
        if _is_served(argv):
            self._server(_early(env), argv[-1])

    def start(self, wanted: Start) -> Process:
        """Starts a process: a copy of a server for the stages that gain from it, a fresh one for others.

        Raises:
            OSError: It could not be started.
        """
        if not _is_served(wanted.argv):
            return spawn(wanted)
        # One that died since the last stage, or while it started, is an accident; a second one in a row is not.
        for is_last in (False, True):
            server = self._server(_early(wanted.env), wanted.argv[-1])
            if server is None:
                return spawn(wanted)
            try:
                return _ask(server, wanted)
            except (BrokenPipeError, ConnectionResetError, EOFError):
                self._drop(server)
                if is_last:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _server(self, env: Mapping[str, str], stage: str) -> _Server | None:
        """Returns the server of an environment; None when a light stage would have to wait for one."""
        with self._lock:
            if stage in _LIGHT:
                near = [server for key, server in self._servers.items() if _without_threads(key) == _light_key(env)]
                return next((server for server in near if server.is_ready()), None)
            key = _key(env)
            if key not in self._servers:
                self._servers[key] = _launched(env)
            return self._servers[key]

    def _drop(self, server: _Server) -> None:
        with self._lock:
            for key in [key for key, known in self._servers.items() if known is server]:
                self._servers.pop(key).close()


def _is_served(argv: Sequence[str]) -> bool:
    *start, _, stage = argv
    return tuple(start) == alone() and stage in _STAGES


def _early(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name not in _LATE}


def _key(env: Mapping[str, str]) -> _Key:
    return tuple(sorted(item for item in env.items() if item[0] not in _SPEED_ONLY))


def _light_key(env: Mapping[str, str]) -> _Key:
    return _without_threads(_key(env))


def _without_threads(key: _Key) -> _Key:
    return tuple(item for item in key if item[0] not in THREAD_VARIABLES)


def _launched(env: Mapping[str, str]) -> _Server:
    ours, theirs = socket.socketpair()
    with theirs:
        argv = (sys.executable, "-P", "-m", "tunerun.fork_server", str(theirs.fileno()), *_STAGES)
        # In a session of its own: Ctrl+C reaches the runner only.
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, env=dict(env), start_new_session=True, pass_fds=(theirs.fileno(),)
        )
    return _Server(process=process, requests=ours)


def _ask(server: _Server, wanted: Start) -> Process:
    report, report_end = os.pipe()
    late = {name: value for name, value in wanted.env.items() if name in _LATE}
    request = json.dumps({"argv": list(wanted.argv), "env": late, "named": list(wanted.named)}) + "\n"
    descriptors = [wanted.output, wanted.errors, *wanted.named.values(), *wanted.held, report_end]
    try:
        socket.send_fds(server.requests, [request.encode()], descriptors)
    except OSError:
        os.close(report)
        raise
    finally:
        os.close(report_end)
    return Forked(report)
