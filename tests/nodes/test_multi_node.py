"""Training over two nodes: it comes to the same, and a node that is lost ends the other soon and by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.nodes import machines
from tunerun.hashes import path_sha256
from tunerun.run import record

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SECONDS_TO_NOTICE = 30
TRAINING = (
    "+recipe=quickstart", "hardware.device=cpu", "hardware.threads=1", "stages=[data,train]",
    "train.global_batch_size=2", "train.checkpoint_steps=5", "eval.prompts=[]",
)  # fmt: skip
SPREAD = (
    "hardware=ddp", "hardware.processes=1", "cluster=multi_node", "cluster.nodes=2",
)  # fmt: skip


@pytest.fixture
def nodes(request):
    """Two nodes, the leader first: namespaces where they are allowed, and loopback addresses elsewhere."""
    wanted = request.param if hasattr(request, "param") else "any"
    absent = None if wanted == "addresses" else machines.missing()
    if absent is not None and wanted == "namespaces":
        pytest.skip(f"a wire that can be cut needs {absent}")
    with machines.two_namespaces() if absent is None and wanted != "addresses" else machines.two_addresses() as found:
        yield found


@pytest.fixture
def start(tmp_path, nodes):
    """Starts the same command on both nodes; returns the processes, the leader's first."""
    started = []

    def begin(*arguments):
        spread = (*SPREAD, f"cluster.rendezvous={nodes[0].meets}", *arguments)
        processes = [node.start(tmp_path, tmp_path / f"{node.address}.log", *TRAINING, *spread) for node in nodes]
        started.extend(processes)
        return processes

    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def said(tmp_path, nodes):
    """Returns what a node printed."""
    return lambda number: (tmp_path / f"{nodes[number].address}.log").read_text()


@pytest.fixture
def alone(tmp_path):
    """Runs the command on this machine as it is."""

    def run(*arguments):
        argv = [sys.executable, "-P", "-m", "tunerun", *TRAINING, *arguments]
        env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    return run


def losses(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def weights(run_dir):
    return path_sha256(run_dir / "adapter/adapter_model.safetensors", "file")


def until_step(run_dir, step, seconds=240):
    deadline = time.monotonic() + seconds
    while not (run_dir / f"checkpoints/step-{step}").is_dir():
        assert time.monotonic() < deadline, "training did not come so far"
        time.sleep(0.1)


@pytest.mark.parametrize("nodes", ["any", "addresses"], indirect=True)
def test_two_nodes_come_to_what_one_process_comes_to(nodes, start, said, alone, tmp_path):
    for process in start("train.max_steps=10", "run_dir=two"):
        assert process.wait(300) == 0, said(0) + said(1)
    alone("train.max_steps=10", "run_dir=one")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    assert "node 1 of 2; the run is in" in said(1)
    assert (tmp_path / "two/logs/train-rank1.log").is_file()
    replays = [
        node.start(tmp_path, tmp_path / f"{node.address}.log", "replay", "two", "run_dir=again") for node in nodes
    ]
    assert [process.wait(300) for process in replays] == [0, 0], said(0) + said(1)
    assert "identical: metrics and artifacts of again are those of two" in said(0)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_node_ends_the_other_and_the_run_goes_on(nodes, start, said, tmp_path, lost):
    long = ("train.max_steps=60",)
    processes = start(*long, "run_dir=broken")
    until_step(tmp_path / "broken", 10)
    nodes[lost].kill()
    killed = time.monotonic()
    code = processes[1 - lost].wait(SECONDS_TO_NOTICE)
    assert time.monotonic() - killed < SECONDS_TO_NOTICE
    assert code == 1, said(1 - lost)
    # A message is folded to the width of a terminal.
    words = " ".join(said(1 - lost).split())
    assert "is gone: it closed the connection" in words
    assert ("node 1 (" if lost else f"the leader ({nodes[0].meets})") in words

    for process in start(*long, "run_dir=broken"):
        assert process.wait(400) == 0, said(0) + said(1)
    assert "going on from step-" in said(0)
    assert "exact, the result is as without the stop" in said(0)
    assert record.read(tmp_path / "broken").status == "done"
    for process in start(*long, "run_dir=whole"):
        assert process.wait(400) == 0, said(0) + said(1)
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")


@pytest.mark.parametrize("nodes", ["namespaces"], indirect=True)
def test_a_wire_that_is_cut_is_noticed_on_both_sides(nodes, start, said, tmp_path):
    processes = start("train.max_steps=2000", "run_dir=cut")
    until_step(tmp_path / "cut", 5)
    nodes[1].cut()
    cut = time.monotonic()
    assert [process.wait(2 * SECONDS_TO_NOTICE) for process in processes] == [1, 1]
    assert time.monotonic() - cut < SECONDS_TO_NOTICE
    assert "is gone" in said(0)
    assert "is gone" in said(1)


def test_a_signal_to_one_node_stops_both_at_the_same_step(start, said, tmp_path):
    processes = start("train.max_steps=2000", "run_dir=stopped")
    until_step(tmp_path / "stopped", 5)
    processes[1].terminate()
    assert [process.wait(2 * SECONDS_TO_NOTICE) for process in processes] == [75, 75], said(0) + said(1)
    assert record.read(tmp_path / "stopped").status == "preempted"
