"""A user's own project: run, lock, commit, clone elsewhere, replay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

RECIPE = """\
# @package _global_
# My model on my rows.
defaults:
  - override /model: mine
  - _self_
data:
  path: data/rows.jsonl
  max_length: 64
train:
  max_steps: 2
  global_batch_size: 4
stages: [data, train, merge]
"""


def tunerun(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tunerun", *arguments],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "src"), **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def git(folder: Path, *arguments: str) -> None:
    names = {f"GIT_{role}_{what}": "x@y.z" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    subprocess.run(["git", *arguments], cwd=folder, env={**os.environ, **names}, check=True, capture_output=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """An empty repository with a model, data and a recipe of its own, run once."""
    folder = tmp_path_factory.mktemp("project")
    for name, text in {
        "recipes/mine.yaml": RECIPE,
        "conf/model/mine.yaml": "path: tunerun://sprout\n",
        "data/rows.jsonl": "".join(
            json.dumps({"instruction": f"Say {n}.", "output": f"{n}, gladly."}) + "\n" for n in range(12)
        ),
        ".gitignore": "outputs/\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "init", "-q")
    done = tunerun(folder, "+recipe=mine", "run_dir=outputs/first")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_what_was_locked_and_committed_gives_the_same_elsewhere(project, tmp_path):
    locked = tunerun(project, "lock", "outputs/first", "pinned")
    assert locked.stdout == "recipes/pinned.yaml: commit it, and run it with tunerun +recipe=pinned\n"
    git(project, "add", "-A")
    git(project, "commit", "-qm", "pinned")
    git(tmp_path, "clone", "-q", str(project), "clone")
    clone = tmp_path / "clone"

    done = tunerun(clone, "+recipe=pinned", "run_dir=outputs/again", USER="ada", LOGNAME="ada")

    assert done.returncode == 0, done.stdout + done.stderr
    records = [
        json.loads((run / "run.json").read_text()) for run in (project / "outputs/first", clone / "outputs/again")
    ]
    hashes = [{item["path"]: item["sha256"] for item in one["stages"]["merge"]["artifacts"]} for one in records]
    assert hashes[0] == hashes[1] != {}


def test_a_lock_refuses_other_data_and_other_packages_and_says_what_differs(project):
    tunerun(project, "lock", "outputs/first", "strict")
    rows = project / "data/rows.jsonl"
    before = rows.read_text()
    rows.write_text(before + '{"instruction": "a", "output": "b"}\n')
    try:
        refused = tunerun(project, "+recipe=strict", "lock.packages.numpy=0.1")
    finally:
        rows.write_text(before)
    assert refused.returncode == 2
    assert "data/rows.jsonl is not what it was" in " ".join(refused.stderr.split())
    assert "numpy 0.1 is asked for" in refused.stderr
    planned = tunerun(project, "plan", "+recipe=strict", "~lock.packages")
    assert planned.returncode == 0
    assert "cannot run here" not in planned.stdout


def test_another_model_than_the_locked_one_is_refused(project):
    refused = tunerun(project, "+recipe=mine", "run_dir=outputs/other", f"lock.model_sha256={'0' * 64}")
    assert refused.returncode == 2
    assert "lock.model_sha256" in refused.stderr + refused.stdout


@pytest.mark.slow
def test_a_replay_is_identical_from_another_folder_and_under_another_name(project, tmp_path):
    done = tunerun(tmp_path, "replay", str(project / "outputs/first"), USER="ada", LOGNAME="ada")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "identical: metrics and artifacts" in done.stdout


@pytest.mark.slow
def test_a_replay_with_other_data_says_so_before_and_after(project, tmp_path):
    rows = project / "data/rows.jsonl"
    before = rows.read_text()
    rows.write_text(before.replace("gladly", "sadly"))
    try:
        done = tunerun(tmp_path, "replay", str(project / "outputs/first"), "run_dir=again")
    finally:
        rows.write_text(before)
    assert done.returncode == 3, done.stdout + done.stderr
    said = done.stdout
    assert said.index("not as recorded") < said.index("[1/") < said.index("not identical")


def test_two_runs_are_told_apart_by_config_and_artifacts(project):
    tunerun(project, "+recipe=mine", "run_dir=outputs/second", "train.learning_rate=1e-3")
    shown = tunerun(project, "diff", "outputs/first", "outputs/second").stdout
    assert "train.learning_rate" in shown
    assert "adapter" in shown
    assert "data.max_length" not in shown
    assert max(len(line) for line in shown.splitlines()) <= 100


@pytest.mark.slow
def test_the_readmes_project_runs_in_an_empty_folder_and_as_a_clone(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = [block for block in readme.split("```bash\n")[1:] if block.startswith("git init mine")]
    lines = block.split("```")[0].splitlines()
    assert len(lines) == 10
    rows = [json.dumps({"instruction": f"Say {n}.", "output": f"{n}, gladly."}) for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    (tmp_path / "tunerun").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tunerun "$@"\n')
    (tmp_path / "tunerun").chmod(0o755)
    # A model that needs no hub, and two steps.
    script = "\n".join(lines).replace("Qwen/Qwen2.5-0.5B-Instruct", "tunerun://sprout")
    script = script.replace("+recipe=mine", "+recipe=mine train.max_steps=2 'stages=[data,train,eval]'")
    names = {f"GIT_{role}_{what}": "x@y.z" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    path = f"{tmp_path}:{os.environ['PATH']}"
    environment = {"HOME": str(tmp_path), "PATH": path, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", **names}
    script += "\ntunerun replay ../mine/outputs/first\n"
    done = subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "identical: metrics and artifacts" in done.stdout
    (pinned,) = (tmp_path / "clone/outputs/pinned").iterdir()
    weights = [run / "adapter/adapter_model.safetensors" for run in (tmp_path / "mine/outputs/first", pinned)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
