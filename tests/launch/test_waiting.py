from __future__ import annotations

import pytest

from tunerun import machine
from tunerun.launch.command import Launch
from tunerun.launch.waiting import with_wait_policy


def launch(threads: int) -> Launch:
    return Launch(argv=("x",), env={"OMP_NUM_THREADS": str(threads)}, without=())


@pytest.mark.parametrize(("threads", "busy", "patient"), [(2, 0.1, False), (2, 1.0, True), (1, 2.0, False)])
def test_threads_sleep_only_when_another_program_has_their_cores(threads, busy, patient, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(machine, "busy_cores", lambda: busy)
    monkeypatch.setattr(machine, "_cores", lambda: 2)
    assert ("OMP_WAIT_POLICY" in with_wait_policy(launch(threads)).env) is patient


def test_the_users_own_policy_stays(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setattr(machine, "busy_cores", lambda: 2.0)
    assert "OMP_WAIT_POLICY" not in with_wait_policy(launch(2)).env


def test_a_look_at_this_machine_finds_between_none_and_all_cores_at_work():
    import os

    assert 0.0 <= machine.busy_cores() <= (os.cpu_count() or 1)
