"""A user's folder on a machine with a stand-in for Slurm."""

from __future__ import annotations

import os
import stat

import pytest

from tests.run import scenario


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Puts Slurm's commands on the path: `slurm(state)` sets what they say of job 42."""
    scenario.use_stand_ins(monkeypatch.setattr)
    monkeypatch.chdir(tmp_path)
    scenario.fill(tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    def install(name, body):
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(stat.S_IRWXU)

    def says(state, sbatch='echo "$@" >> submitted; echo "42;cluster"'):
        install("sbatch", sbatch)
        install("squeue", f'echo "7|RUNNING"; echo "42|{state}"' if state else "exit 0")
        install("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")

    says("PENDING")
    return says
