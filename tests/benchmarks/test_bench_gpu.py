"""The benchmark for GPUs runs as its users start it; on a CPU, with a tiny shape."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

SCRIPT = Path(__file__).with_name("bench_gpu.py")


def test_a_tiny_shape_on_a_cpu_fills_the_table(tmp_path: Path) -> None:
    words = ["--shape", "tiny", "--device", "cpu", "--steps", "3", "--warmup", "1", "--repeats", "1", "--threads", "1"]
    argv = [sys.executable, str(SCRIPT), *words, "--runners", "tunerun", "--out", str(tmp_path / "RESULTS.md")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert told.strip() == done.stdout.strip()
    title, versions = told.strip().splitlines()[0], told.strip().splitlines()[2]
    assert str(datetime.datetime.now(datetime.UTC).year) in title
    assert "CPU" in title
    assert "torch 2." in versions
    shape, runner, rate, *_, loss = [cell.strip() for cell in told.strip().splitlines()[-1].strip("|").split("|")]
    assert (shape, runner) == ("tiny", "tunerun")
    assert float(rate.replace(",", "")) > 100
    # Random tokens of 512: the loss is ln(512) = 6.24.
    assert 5.5 < float(loss) < 7.0
