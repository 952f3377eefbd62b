"""What trackers keep and would send holds no secret: of the environment, the output and the user's project."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.secret_kinds import KINDS, found_in, pieces, written
from tests.train.leak import HARMLESS
from tests.train.runs import make_run, train_step
from tunerun import artifacts
from tunerun.config.schema import TrackConfig
from tunerun.errors import ExitCode
from tunerun.plan import steps

pytestmark = pytest.mark.slow

_OFFLINE = {"WANDB_MODE": "offline", "SWANLAB_MODE": "offline"}


def _git(project: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=project, check=True, capture_output=True)


def _project(folder: Path) -> Path:
    """Makes a user's git repository: passwords in its remote's address, and secrets in what is not committed."""
    folder.mkdir()
    notes = folder / "notes.txt"
    notes.write_text("nothing yet\n")
    _git(folder, "init")
    _git(folder, "add", ".")
    _git(folder, "commit", "-m", "first")
    password = urllib.parse.quote(KINDS["github classic"][1], safe="")
    _git(folder, "remote", "add", "origin", f"https://me:{password}@example.org/project.git")
    notes.write_text("".join(f"{value}\n" for _, value, _ in KINDS.values()))
    return folder


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow", "swanlab", "tensorboard"])
def test_no_secret_reaches_a_tracker(tmp_path: Path, name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"needs {name}")
    out = make_run(tmp_path / "run")
    step = train_step(max_steps=4, track=TrackConfig(**{name: True}))
    artifacts.write_json(out / artifacts.PLAN, {"steps": [steps.to_json(step)]})
    # Whatever the tracker keeps in the user's folders is looked through, too.
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        **os.environ,
        **_OFFLINE,
        **{variable: value for variable, value, _ in KINDS.values()},
        "HOME": str(home),
        "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))),
    }
    for variable in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME", "TRACKIO_DIR", "MLFLOW_TRACKING_URI"):
        environment.pop(variable, None)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tests.train.leak", str(out)],
        cwd=_project(tmp_path / "project"),
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == ExitCode.STAGE_FAILED, done.stderr
    # It did say them, to who listens to the process.
    assert HARMLESS in done.stdout
    assert all(any(piece in done.stdout for piece in pieces(value)) for _, value, _ in KINDS.values())
    kept = written(out) | {f"home/{file}": text for file, text in written(home).items()}
    assert any("train/loss" in text for file, text in kept.items() if not file.endswith(".jsonl"))
    assert found_in(kept) == []
