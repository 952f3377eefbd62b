"""Two ranks under torchrun and the real runner: signals, kills and stops, and what becomes of the training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tunerun import artifacts
from tunerun.run import rundir

STEPS = 60
RANKS = 2


class Run:
    """A run of the command line, in the background."""

    def __init__(self, folder: Path, name: str, *more: str, strategy: str = "ddp") -> None:
        self.out = folder / name
        arguments = [
            "+recipe=quickstart",
            f"hardware={strategy}",
            f"hardware.processes={RANKS}",
            "hardware.threads=1",
            "stages=[data,train]",
            f"train.max_steps={STEPS}",
            "train.checkpoint_steps=5",
            "eval.prompts=[]",
            f"run_dir={name}",
            *more,
        ]
        self.process = _start(folder, arguments)

    def wait(self, seconds: float = 240.0) -> int:
        """Waits for the end; returns the exit code."""
        self.said = self.process.communicate(timeout=seconds)[0]
        return self.process.returncode

    def until_step(self, step: int, seconds: float = 240.0) -> None:
        """Waits until a step was logged."""
        _until(lambda: self.steps() and self.steps()[-1] >= step, seconds, self.process)

    def steps(self) -> list[int]:
        """Returns the steps in metrics.jsonl."""
        path = self.out / artifacts.METRICS
        lines = path.read_text().splitlines() if path.is_file() else []
        return [json.loads(line)["step"] for line in lines if line.endswith("}")]

    def rank(self, number: int) -> int:
        """Returns the process number of a rank."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command, environment = (
                    (process / name).read_bytes().decode().split("\0") for name in ("cmdline", "environ")
                )
            except OSError:
                continue
            if str(self.out) in command and "torch.distributed.run" not in command and f"RANK={number}" in environment:
                return int(process.name)
        raise AssertionError(f"there is no rank {number}")

    def adapter(self) -> bytes:
        """Returns the trained weights."""
        return (self.out / artifacts.ADAPTER / "adapter_model.safetensors").read_bytes()

    def saved(self) -> list[str]:
        """Returns the names of the checkpoints."""
        return sorted(path.name for path in (self.out / artifacts.CHECKPOINTS).iterdir())


def _start(folder: Path, arguments: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(
        [sys.executable, "-m", "tunerun", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _until(condition: Callable[[], Any], seconds: float, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _works(pid: int) -> bool:
    """Says whether a process is there and not just waiting for whoever inherited it to take note of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _resume(run: Run) -> None:
    process = _start(run.out.parent, ["resume", run.out.name])
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    assert "exact, the result is as without the stop" in said


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nobody disturbs."""
    run = Run(tmp_path_factory.mktemp("straight"), "run")
    assert run.wait() == 0, run.said
    return run


def test_a_signal_to_one_rank_stops_all_at_the_same_step_and_the_run_goes_on_to_the_same_bits(
    tmp_path: Path, straight: Run
) -> None:
    run = Run(tmp_path, "run")
    run.until_step(8)
    os.kill(run.rank(1), signal.SIGUSR1)
    asked = time.monotonic()
    assert run.wait(30) == 75, run.said
    assert time.monotonic() - asked < 30
    assert f"stopped by SIGUSR1 after step {run.steps()[-1]} of {STEPS}" in run.said
    assert f"step-{run.steps()[-1]}" in run.saved()
    _resume(run)
    assert run.adapter() == straight.adapter()


def test_a_killed_rank_is_named_and_the_training_started_again_ends_in_the_same_bits(
    tmp_path: Path, straight: Run
) -> None:
    run = Run(tmp_path, "run", "hardware.max_restarts=1")
    run.until_step(12)
    killed = run.rank(1)
    os.kill(killed, signal.SIGKILL)
    assert run.wait() == 0, run.said
    assert f"rank 1 (process {killed}) died" in run.said
    assert "restart 1 of 1" in run.said
    assert run.adapter() == straight.adapter()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero2", "fsdp2"])
def test_without_restarts_a_killed_rank_ends_the_group_within_ten_seconds(tmp_path: Path, strategy: str) -> None:
    run = Run(tmp_path, "run", strategy=strategy)
    run.until_step(6)
    other = run.rank(0)
    os.kill(run.rank(1), signal.SIGKILL)
    killed = time.monotonic()
    assert run.wait(30) == 1, run.said
    assert time.monotonic() - killed < 10
    assert not _works(other)
    assert "rank 1 (process" in run.said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("target", ["runner", "torchrun", "both"])
def test_signals_to_the_launcher_save_and_stop(tmp_path: Path, straight: Run, number: Any, target: str) -> None:
    run = Run(tmp_path, "run")
    run.until_step(6)
    launcher = int(Path(f"/proc/{run.rank(0)}/stat").read_text().rpartition(")")[2].split()[1])
    for pid in {"runner": [run.process.pid], "torchrun": [launcher], "both": [run.rank(0), run.process.pid]}[target]:
        os.kill(pid, number)
        time.sleep(0.5 if target == "both" else 0.0)
    assert run.wait(30) == 75, run.said
    assert f"step-{run.steps()[-1]}" in run.saved()
    _resume(run)
    assert run.adapter() == straight.adapter()


@pytest.mark.slow
def test_a_stopped_rank_is_found_and_named(tmp_path: Path) -> None:
    run = Run(tmp_path, "run")
    run.until_step(6)
    stopped = run.rank(1)
    os.kill(stopped, signal.SIGSTOP)
    assert run.wait(60) == 1, run.said
    assert f"rank 1 (process {stopped}) is stopped" in run.said
    assert not _works(stopped)


@pytest.mark.slow
def test_a_runner_that_is_killed_leaves_no_rank_behind(tmp_path: Path, straight: Run) -> None:
    run = Run(tmp_path, "run")
    run.until_step(6)
    ranks = [run.rank(0), run.rank(1)]
    run.process.kill()
    run.process.communicate()
    deadline = time.monotonic() + 40
    # torchrun ends after its ranks, and holds the run's lock until then.
    while any(map(_works, ranks)) or rundir.is_busy(run.out):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    _resume(run)
    assert run.adapter() == straight.adapter()
