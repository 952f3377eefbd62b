"""Guards and metrics take less than a fiftieth of a step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

SCRIPT = Path(__file__).with_name("bench_guards.py")


def test_guards_and_metrics_cost_less_than_two_percent_of_a_step() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, str(SCRIPT), "--steps", "8"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "guards and metrics" in done.stdout
