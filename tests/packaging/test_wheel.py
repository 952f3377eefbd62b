"""The built wheel holds all it needs and works from an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

# What planning needs; everything else is for the stages.
LIGHT = ("hydra-core", "omegaconf")


def run(*argv: str | Path, cwd: Path) -> str:
    # No PYTHONPATH: only what is installed counts.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    run(*pip, "-w", folder, ROOT, cwd=folder)
    return next(folder.glob("tunerun-*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True)
    interpreter = folder / "bin" / "python"
    pip = (interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "-c", ROOT / "constraints.txt", *LIGHT, cwd=folder)
    run(*pip, "--no-deps", wheel, cwd=folder)
    return interpreter


def test_configs_recipes_and_the_base_model_are_inside(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = [
        "tunerun/_shipped/conf/tunerun.yaml",
        "tunerun/_shipped/conf/model/qwen2.5-7b.yaml",
        "tunerun/_shipped/recipes/quickstart.yaml",
        "tunerun/assets/identity.jsonl",
        "tunerun/assets/sprout/model.safetensors",
        "tunerun/assets/sprout/tokenizer.json",
        "tunerun/assets/chat_page/index.html",
        "tunerun/assets/chat_page/style.css",
        "tunerun/assets/chat_page/app.js",
        "tunerun/chat/templates/chatml.jinja",
        "hydra_plugins/tunerun/__init__.py",
    ]
    assert [name for name in expected if name not in names] == []
    assert not any(name.startswith(("conf/", "recipes/", "tests/")) for name in names)
    # Other packages put plugins into the same namespace.
    assert "hydra_plugins/__init__.py" not in names


def test_a_fresh_installation_plans_the_quickstart_from_an_empty_folder(python, tmp_path):
    out = run(python, "-m", "tunerun", "plan", "+recipe=quickstart", cwd=tmp_path)
    assert "model -> data -> train -> eval -> merge -> export -> verify" in out
    assert "there is no file" not in out
    assert list(tmp_path.iterdir()) == []


def test_the_command_is_on_the_path(python, tmp_path):
    assert run(python.parent / "tunerun", "--version", cwd=tmp_path).startswith("tunerun 0.")


def test_hydra_finds_the_sweepers_of_an_installation(python, tmp_path):
    show = (python, "-m", "tunerun", "--cfg", "hydra", "-p", "hydra.sweeper")
    assert "_target_: hydra_plugins.tunerun.GridSweeper" in run(*show, cwd=tmp_path)
    found = run(*show, "hydra/sweeper=tunerun_optuna", "hydra.sweeper.pruner=asha", cwd=tmp_path)
    assert "pruner: asha" in found
    missing = subprocess.run(
        [python, "-m", "tunerun", "-m", "+recipe=quickstart", "hydra/sweeper=tunerun_optuna", "seed=1,2"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "tunerun[sweep]" in missing.stderr.replace("\n   ", "")
    assert list(tmp_path.iterdir()) == []
