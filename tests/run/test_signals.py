"""Signals to a runner in a process of its own: nothing of it stays, and the run can go on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunerun.errors import ExitCode
from tunerun.run import record

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"


@pytest.fixture
def start(tmp_path):
    started = []
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.safetensors").write_text("weights")
    (tmp_path / "rows.txt").write_text("rows")

    def begin(behaviour):
        environment = {**os.environ, "PYTHONPATH": str(SOURCE), "TUNERUN_TEST_BEHAVIOUR": behaviour}
        argv = [
            sys.executable,
            str(HERE / "drive_runner.py"),
            *(str(tmp_path / name) for name in ("run", "rows.txt", "model")),
        ]
        # A log instead of a pipe: a pipe that nobody reads would stop the runner.
        with (tmp_path / "printed").open("w") as printed:
            process = subprocess.Popen(argv, cwd=tmp_path, env=environment, stdout=printed, stderr=printed)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def workers_of(run_dir):
    """Returns the processes whose command line names the run directory."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if str(run_dir).encode() in words and state != "Z":
                found.append(int(folder.name))
    return found


def ready(run_dir):
    return lambda: (run_dir / "logs/ready").exists()


@pytest.mark.parametrize(
    ("number", "behaviour"),
    [(signal.SIGINT, "train:checkpoint"), (signal.SIGTERM, "train:checkpoint"), (signal.SIGHUP, "train:sleep")],
)
def test_a_signal_stops_the_stage_and_the_run_can_go_on(start, run_dir, number, behaviour, tmp_path):
    runner = start(behaviour)
    wait_for(ready(run_dir))
    runner.send_signal(number)

    assert runner.wait(timeout=20) == ExitCode.PREEMPTED

    entry = record.read(run_dir)
    assert entry.status == "preempted"
    assert entry.stages["train"].status == "preempted"
    assert "merge" not in entry.stages
    assert workers_of(run_dir) == []
    assert (run_dir / "checkpoints/step-7").exists() == (behaviour == "train:checkpoint")
    assert (tmp_path / "printed").read_text().splitlines()[-1] == f"run: {run_dir}"
    assert start("none").wait(timeout=30) == ExitCode.DONE
    assert record.read(run_dir).stages["data"].status == "skipped"


def test_a_stopped_stage_leaves_nothing_half_written(start, run_dir):
    runner = start("data:sleep")
    wait_for(ready(run_dir))
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(timeout=20) == ExitCode.PREEMPTED
    assert not (run_dir / "data").exists()
    assert not list(run_dir.rglob("*.partial-*"))


def test_a_second_signal_kills(start, run_dir):
    runner = start("train:ignore")
    wait_for(ready(run_dir))
    runner.send_signal(signal.SIGINT)
    time.sleep(0.3)
    runner.send_signal(signal.SIGINT)
    assert runner.wait(timeout=2.5) == ExitCode.PREEMPTED
    assert workers_of(run_dir) == []


def test_a_stage_that_does_not_end_is_killed_after_a_while(start, run_dir):
    runner = start("train:ignore")
    wait_for(ready(run_dir))
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(timeout=20) == ExitCode.PREEMPTED
    assert workers_of(run_dir) == []


@pytest.mark.parametrize("behaviour", ["train:checkpoint", "train:sleep"])
def test_a_killed_runner_leaves_no_stage_behind(start, run_dir, behaviour):
    runner = start(behaviour)
    wait_for(ready(run_dir))
    assert len(workers_of(run_dir)) == 2

    runner.kill()
    runner.wait()

    wait_for(lambda: workers_of(run_dir) == [], seconds=10)
    assert record.read(run_dir).status == "running"
    assert (run_dir / "checkpoints/step-7").exists() == (behaviour == "train:checkpoint")
    assert start("none").wait(timeout=30) == ExitCode.DONE


def test_what_a_crashed_stage_started_is_killed(start, run_dir):
    runner = start("train:grandchild")
    assert runner.wait(timeout=20) == ExitCode.STAGE_FAILED
    pid = int((run_dir / "logs/grandchild").read_text())
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])


def test_a_second_runner_is_refused_while_a_stage_of_a_killed_one_still_works(start, run_dir, tmp_path):
    runner = start("train:ignore")
    wait_for(ready(run_dir))
    runner.kill()
    runner.wait()
    assert start("none").wait(timeout=10) == ExitCode.USER_ERROR
    assert "is being worked in by process" in (tmp_path / "printed").read_text()
    for pid in workers_of(run_dir):
        os.kill(pid, signal.SIGKILL)
