"""Work shared out to threads: numpy, ggml and the kernel let go of Python's lock while they compute."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor


def cores() -> int:
    """Returns how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_out(jobs: Iterable[Callable[[], None]], *, threads: int) -> None:
    """Does jobs in some threads, in no certain order.

    Args:
        jobs: Made when a thread is free, one at a time: no more than there are threads exist at once.
        threads: How many.

    Raises:
        Exception: What making or doing a job raised first. The others at work are finished, and none is begun.
    """
    remaining, taking, ended = iter(jobs), threading.Lock(), threading.Event()

    def work() -> None:
        try:
            while not ended.is_set():
                with taking:
                    job = next(remaining, None)
                if job is None:
                    return
                job()
        finally:
            # There is nothing left, or something went wrong.
            ended.set()

    with ThreadPoolExecutor(max_workers=threads) as pool:
        try:
            for worker in [pool.submit(work) for _ in range(threads)]:
                worker.result()
        finally:
            # A signal that arrives in this thread stops the others, too.
            ended.set()
