import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunerun.launch.ranks import LOST_SECONDS, STOPPED_SECONDS, RankTable


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def ranks():
    """Two processes that stand for ranks, and the table that has heard of them."""
    started = [
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
        for _ in range(2)
    ]
    clock = Clock()
    table = RankTable(stall_seconds=100.0, clock=clock)
    for number, process in enumerate(started):
        table.hear({"rank": number, "pid": process.pid})
    yield table, started, clock
    for process in started:
        process.kill()
        process.wait()


def test_ranks_that_work_have_no_fault(ranks):
    table, _, clock = ranks
    assert table.fault() is None
    clock.now = 99.0
    assert table.fault() is None


def test_a_rank_that_is_killed_is_named_when_the_others_had_time_to_end(ranks):
    table, started, clock = ranks
    started[1].kill()
    started[1].wait()
    assert table.fault() is None
    clock.now = LOST_SECONDS + 0.1
    assert table.fault() == (f"rank 1 (process {started[1].pid}) died: something killed it, or it ran out of memory")


def test_the_cause_is_named_and_not_those_that_fail_for_its_sake(ranks):
    table, started, clock = ranks
    started[1].kill()
    started[1].wait()
    table.fault()
    clock.now = 0.5
    table.hear({"rank": 0, "code": 1})
    started[0].kill()
    started[0].wait()
    table.fault()
    assert "rank 1" in table.lost()


def test_a_rank_that_told_of_its_failure_is_not_lost_nor_those_killed_after_it(ranks):
    table, started, clock = ranks
    table.hear({"rank": 0, "code": 2})
    started[0].kill()
    started[0].wait()
    table.fault()
    clock.now = LOST_SECONDS + 0.1
    assert table.fault() == "a rank failed and the others did not end"
    started[1].kill()
    started[1].wait()
    table.fault()
    assert table.lost() is None


def test_ranks_that_end_well_are_no_fault(ranks):
    table, started, clock = ranks
    table.hear({"rank": 0, "code": 0})
    started[0].kill()
    started[0].wait()
    clock.now = 50.0
    assert table.fault() is None


def test_a_stopped_rank_is_named(ranks):
    table, started, clock = ranks
    os.kill(started[0].pid, signal.SIGSTOP)
    _until(lambda: _state(started[0].pid) == "T")
    assert table.fault() is None
    clock.now = STOPPED_SECONDS + 0.1
    assert table.fault().startswith(f"rank 0 (process {started[0].pid}) is stopped")


def test_one_that_goes_on_in_time_is_not(ranks):
    table, started, clock = ranks
    os.kill(started[0].pid, signal.SIGSTOP)
    _until(lambda: _state(started[0].pid) == "T")
    assert table.fault() is None
    os.kill(started[0].pid, signal.SIGCONT)
    _until(lambda: _state(started[0].pid) != "T")
    clock.now = STOPPED_SECONDS + 0.1
    assert table.fault() is None


def test_ranks_that_are_silent_for_too_long_are_given_up_with_their_steps(ranks):
    table, _, clock = ranks
    table.hear({"rank": 0, "step": 6})
    table.hear({"rank": 1, "step": 5})
    clock.now = 100.1
    assert table.fault() == "no rank told of a step for 100 s: rank 0 in step 7, rank 1 in step 6"
    table.alive()
    assert table.fault() is None


def test_a_signal_reaches_all_ranks_and_those_that_come_later(ranks):
    table, started, _ = ranks
    table.ask(signal.SIGTERM)
    assert [process.wait(timeout=10) for process in started] == [-signal.SIGTERM] * 2
    late = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    table.hear({"rank": 2, "pid": late.pid})
    assert late.wait(timeout=10) == -signal.SIGTERM


def test_killing_leaves_nothing_of_what_ranks_started(ranks):
    table, started, _ = ranks
    table.kill()
    assert [process.wait(timeout=10) for process in started] == [-signal.SIGKILL] * 2
    # Their numbers may belong to others now.
    table.kill()
    table.ask(signal.SIGTERM)


def _state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
