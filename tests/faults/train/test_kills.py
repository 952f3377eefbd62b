"""kill -9 and signals at random moments: only steps since the last checkpoint are lost, and no bit differs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT


def _forks(kind: str, folder: Path, count: int, timeout: float = 280) -> Any:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", "tests.faults.train.forks", kind, str(folder), str(count)]
    done = subprocess.run(arguments, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "count",
    [25, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])],
)
def test_kill_9_at_any_moment_leaves_a_run_that_resumes_to_the_same_bits(tmp_path: Path, count: int) -> None:
    told = _forks("kills", tmp_path, count, timeout=3500)
    assert told["kills"] == count
    assert told["finished"] >= 4
    assert 1 <= told["halved"] < told["finished"]
    assert told["different"] == []


@pytest.mark.parametrize(
    "count",
    [6, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])],
)
def test_a_signal_at_any_moment_saves_the_step_just_done_and_exits_with_75(tmp_path: Path, count: int) -> None:
    told = _forks("signals", tmp_path, count, timeout=3500)
    assert told["stopped"] >= count // 2
    assert told["wrong"] == []
    assert told["different"] == 0
