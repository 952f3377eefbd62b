"""Nothing appears under its final name before it is complete."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tunerun import artifacts


def write_folder(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_the_place_of_the_old_one(tmp_path):
    target = tmp_path / "deep" / "a.json"
    artifacts.write_json(target, {"x": 1.1, "name": "某人"})
    artifacts.write_json(target, {"x": 0.1 + 0.2})
    assert artifacts.read_json(target) == {"x": 0.30000000000000004}
    assert listing(target.parent) == ["a.json"]


def test_a_folder_takes_the_place_of_the_old_one_whole(tmp_path):
    target = tmp_path / "data"
    write_folder(target, old="1", both="1")
    with artifacts.publish(target) as staging:
        write_folder(staging, both="2", new="2")
        assert listing(target) == ["both", "old"]
    assert listing(target) == ["both", "new"]
    assert (target / "both").read_text() == "2"
    assert listing(tmp_path) == ["data"]


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_fault_in_the_middle_leaves_the_old_one(tmp_path, kind, error):
    target = tmp_path / "made"
    write_folder(target, text="old")

    def half():
        with artifacts.publish(target) as staging:
            if kind == "file":
                staging.write_text("half")
            else:
                write_folder(staging, text="half")
            raise error

    with pytest.raises(error):
        half()
    assert (target / "text").read_text() == "old"
    assert listing(tmp_path) == ["made"]


def test_a_fault_before_anything_was_written_leaves_nothing(tmp_path):
    def nothing():
        with artifacts.publish(tmp_path / "made"):
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        nothing()
    assert listing(tmp_path) == []


def test_a_kill_in_the_middle_leaves_the_old_one(tmp_path):
    target = tmp_path / "made"
    write_folder(target, text="old")
    code = (
        "import os, signal, sys; from pathlib import Path; from tunerun import artifacts\n"
        "with artifacts.publish(Path(sys.argv[1])) as staging:\n"
        "    staging.mkdir(); (staging / 'text').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], env={"PYTHONPATH": str(ROOT / "src")}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (target / "text").read_text() == "old"
    left = [name for name in listing(tmp_path) if name != "made"]
    assert len(left) == 1
    assert left[0].startswith(".made.partial-")


def test_a_symlink_is_replaced_and_what_it_points_to_is_not(tmp_path):
    write_folder(tmp_path / "elsewhere", text="mine")
    (tmp_path / "made").symlink_to("elsewhere")
    with artifacts.publish(tmp_path / "made") as staging:
        write_folder(staging, text="new")
    assert not (tmp_path / "made").is_symlink()
    assert (tmp_path / "elsewhere/text").read_text() == "mine"


def test_a_file_is_described_by_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * (3 << 20))
    found = artifacts.describe(tmp_path, "gguf", "a")
    assert found == artifacts.Artifact(
        kind="gguf", path="a", sha256=hashlib.sha256(b"x" * (3 << 20)).hexdigest(), bytes=3 << 20
    )


def test_a_folder_is_described_by_its_names_and_their_hashes(tmp_path):
    write_folder(tmp_path / "data/deep", b="2")
    write_folder(tmp_path / "data", a="1")
    text_of_names = "".join(
        f"{name} {hashlib.sha256(text).hexdigest()}\n" for name, text in (("a", b"1"), ("deep/b", b"2"))
    )
    found = artifacts.describe(tmp_path, "data", "data")
    assert (found.sha256, found.bytes) == (hashlib.sha256(text_of_names.encode()).hexdigest(), 2)
    (tmp_path / "data/a").rename(tmp_path / "data/c")
    assert artifacts.describe(tmp_path, "data", "data").sha256 != found.sha256
