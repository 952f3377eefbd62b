"""Runs stages in copies of itself: `python -m tunerun.fork_server SOCKET_FD STAGE ...`, for the trials of a sweep.

Most of a short stage's time goes into imports and the loading of the base model. This process imports what the named
stages need, holds the base that trials put their adapters on, and forks for each request. It computes in one thread
only, so that there is none of OpenMP's that a copy would wait for in vain. A copy is as good as a fresh process: a
crash is its own, its memory goes with it, and its results are the same to the bit.

A request is one line of JSON and the descriptors that it speaks of. On the last of these the server answers with the
copy's process id, and with its exit status when it ends; the end of that file without a status means that the server
died. `tunerun.launch.forks` is the other side.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tunerun import worker

_MAX_REQUEST_BYTES = 1 << 16
_MAX_DESCRIPTORS = 16


def main(argv: Sequence[str]) -> int:
    """Serves until the other end of the socket is closed.

    Args:
        argv: Number of the socket's descriptor, and the stages to import.
    """
    requests = socket.socket(fileno=int(argv[0]))
    with worker.leaving_out(worker.SELDOM_NEEDED):
        for stage in argv[1:]:
            worker.load_stage(stage)
    # What is there now is never collected, so that a collection in a copy does not touch, and copy, its pages.
    gc.collect()
    gc.freeze()
    # Says, to who looks, that it answers at once from now on.
    with contextlib.suppress(BrokenPipeError):
        requests.send(b"\n")
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    reports: dict[int, int] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        selector.register(wake_read, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is requests:
                    if not _serve(requests, (wake_read, wake_write), reports):
                        return 0
                else:
                    os.read(wake_read, 1 << 10)
            _reap(reports)


def _serve(requests: socket.socket, wake: tuple[int, int], reports: dict[int, int]) -> bool:
    """Takes a request and forks; says whether there was one."""
    line, descriptors, _, _ = socket.recv_fds(requests, _MAX_REQUEST_BYTES, _MAX_DESCRIPTORS)
    if not line:
        return False
    while not line.endswith(b"\n"):
        line += requests.recv(_MAX_REQUEST_BYTES)
    request = json.loads(line)
    *given, report = descriptors
    *_, run_dir, stage = request["argv"]
    worker.hold_base(Path(run_dir), stage)
    process = os.fork()
    if process == 0:
        for descriptor in (requests.fileno(), *wake, report, *reports.values()):
            os.close(descriptor)
        _run(request, given)
    for descriptor in given:
        os.close(descriptor)
    reports[process] = report
    _tell(report, process)
    return True


def _run(request: Mapping[str, Any], descriptors: Sequence[int]) -> NoReturn:
    """Becomes the process that was asked for, and ends."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        output, errors, *others = descriptors
        null = os.open(os.devnull, os.O_RDONLY)
        for number, descriptor in enumerate((null, output, errors)):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.environ.update(request["env"])
        # The rest has no name and is only held.
        os.environ.update(zip(request["named"], map(str, others), strict=False))
        *_, run_dir, stage = request["argv"]
        if worker.misses(Path(run_dir), stage):
            _become_fresh(request["argv"], others)
        code = worker.main([run_dir, stage])
    except BaseException:  # noqa: BLE001 (nothing may return into the server)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _become_fresh(argv: Sequence[str], descriptors: Sequence[int]) -> NoReturn:
    """Goes on as a fresh process, whose imports leave out nothing that the stage needs."""
    for descriptor in descriptors:
        os.set_inheritable(descriptor, True)
    os.execv(argv[0], tuple(argv))


def _reap(reports: dict[int, int]) -> None:
    for process in list(reports):
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            report = reports.pop(process)
            _tell(report, os.waitstatus_to_exitcode(status))
            os.close(report)


def _tell(report: int, number: int) -> None:
    try:
        os.write(report, f"{number}\n".encode())
    except BrokenPipeError:
        # Who asked is gone; the copy finds that out by itself.
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
