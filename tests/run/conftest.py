"""A run directory to be, its data and its model, and stand-ins for the stages."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import scenario


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Executes the small run: `small(data="...", stages=..., allow=..., learning_rate=...)` returns the exit code."""
    scenario.use_stand_ins(monkeypatch.setattr)
    monkeypatch.chdir(tmp_path)
    scenario.fill(tmp_path)

    def execute(**settings):
        return scenario.execute(tmp_path / "run", tmp_path / "rows.txt", tmp_path / "model", **settings)

    return execute


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "run"
