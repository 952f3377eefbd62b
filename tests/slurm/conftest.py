"""A cluster for this folder's tests, and the `tunerun` command in a project whose path has a blank."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.slurm import cluster as clusters
from tunerun import artifacts
from tunerun.run import inspect


@pytest.fixture(scope="module")
def nodes():
    """How many nodes the cluster has; a module may say otherwise."""
    return 1


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, nodes):
    absent = clusters.missing()
    if absent:
        pytest.skip(f"a Slurm cluster needs {', '.join(absent)} (Debian: apt-get install slurm-wlm munge, as root)")
    with clusters.running(tmp_path_factory.mktemp("slurm"), nodes=nodes, cpus=2 // nodes) as found:
        yield found


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return tmp_path_factory.mktemp("my project")


@pytest.fixture(scope="module")
def tunerun(cluster, project):
    """Runs the command: `tunerun("show", "one")`; `before` is what stands in front of it, such as srun."""
    env = {**cluster.env, "PYTHONPATH": str(ROOT / "src")}

    def call(*arguments, before=(), code=0):
        argv = [*before, sys.executable, "-P", "-m", "tunerun", *arguments]
        done = subprocess.run(argv, cwd=project, env=env, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    return call


@pytest.fixture
def state(cluster, project, monkeypatch):
    """Returns what `tunerun show` calls the state of a run; asked in this process, for the jobs need the cores."""
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, cluster.env[name])
    return lambda run: inspect.show(project / run).splitlines()[0].partition(": ")[2]


@pytest.fixture
def wait(state):
    """Waits until a run is in one of some states; returns all states that were seen."""

    def until(run, *wanted, seconds=400):
        seen = [state(run)]
        deadline = time.monotonic() + seconds
        while seen[-1] not in wanted:
            assert time.monotonic() < deadline, f"{run} did not become {wanted}: {seen}"
            time.sleep(0.3)
            now = state(run)
            if now != seen[-1]:
                seen.append(now)
        return seen

    return until


@pytest.fixture
def wait_for_a_step(state, project):
    """Waits until a run has logged a step."""

    def until(run, seconds=400):
        deadline = time.monotonic() + seconds
        while not (project / run / artifacts.METRICS).is_file():
            assert time.monotonic() < deadline, f"{run} logged no step"
            assert state(run) not in ("done", "failed"), f"{run} logged no step and is {state(run)}"
            time.sleep(0.3)

    return until
