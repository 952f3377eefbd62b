"""Jobs are done in threads, each once, and nothing is begun after a failure."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tunerun.formats.share import cores, share_out


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_job_is_done_once(threads: int) -> None:
    done: list[int] = []
    share_out((partial(done.append, number) for number in range(100)), threads=threads)
    assert sorted(done) == list(range(100))


def test_jobs_are_done_at_once_and_no_more_are_made_than_there_are_threads() -> None:
    together = threading.Barrier(3, timeout=10)
    made: list[int] = []
    ended: list[int] = []
    alive: list[int] = []

    def job(number: int) -> None:
        together.wait()
        ended.append(number)

    def jobs() -> Iterator[Callable[[], None]]:
        for number in range(9):
            made.append(number)
            alive.append(len(made) - len(ended))
            yield partial(job, number)

    share_out(jobs(), threads=3)
    assert max(alive) == 3


@pytest.mark.parametrize("threads", [1, 4])
def test_the_first_failure_is_raised_and_the_rest_is_left(threads: int) -> None:
    begun: list[int] = []

    def job(number: int) -> None:
        begun.append(number)
        if number == 10:
            raise ValueError("ten")
        time.sleep(0.001)

    with pytest.raises(ValueError, match="ten"):
        share_out((partial(job, number) for number in range(10_000)), threads=threads)
    assert len(begun) < 100


def test_a_failure_to_make_a_job_is_raised() -> None:
    def jobs() -> Iterator[Callable[[], None]]:
        yield lambda: None
        raise ValueError("no second one")

    with pytest.raises(ValueError, match="no second one"):
        share_out(jobs(), threads=2)


def test_a_signal_ends_the_work() -> None:
    class Signalled(BaseException):
        pass

    def raise_it(*_: object) -> None:
        raise Signalled

    before = signal.signal(signal.SIGALRM, raise_it)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(Signalled):
            share_out((partial(time.sleep, 0.01) for _ in range(100_000)), threads=cores())
    finally:
        signal.signal(signal.SIGALRM, before)
