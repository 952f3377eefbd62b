import os

import pytest

from tunerun import artifacts
from tunerun.artifacts import Artifact
from tunerun.run.checksums import Checksums


@pytest.fixture
def counted(monkeypatch):
    """Counts how often something is really read."""
    read = []
    real = artifacts.sha256
    monkeypatch.setattr(artifacts, "sha256", lambda path: read.append(path) or real(path))
    return read


@pytest.fixture
def made(tmp_path):
    (tmp_path / "adapter").write_text("weights")
    return artifacts.describe(tmp_path, "adapter", "adapter")


def test_a_file_is_read_once_over_two_executions(tmp_path, made, counted):
    first = Checksums(tmp_path)
    assert first.match(made)
    first.save()
    assert Checksums(tmp_path).match(made)
    assert len(counted) == 1


def test_a_changed_file_of_equal_size_does_not_match(tmp_path, made):
    checksums = Checksums(tmp_path)
    assert checksums.match(made)
    (tmp_path / "adapter").write_text("thgiews")
    os.utime(tmp_path / "adapter", ns=(1, 1))
    assert not checksums.match(made)


def test_a_replaced_file_with_the_same_time_does_not_match(tmp_path, made):
    file, other = tmp_path / "adapter", tmp_path / "other"
    other.write_text("thgiews")
    checksums = Checksums(tmp_path)
    assert checksums.match(made)
    stat = file.stat()
    other.replace(file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert not checksums.match(made)


def test_a_folder_that_lost_a_file_does_not_match(tmp_path):
    folder = tmp_path / "merged"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/a").write_text("a")
    (folder / "b").write_text("b")
    made, checksums = artifacts.describe(tmp_path, "model", "merged"), Checksums(tmp_path)
    assert checksums.match(made)
    (folder / "deep/a").unlink()
    assert not checksums.match(made)


def test_what_is_gone_does_not_match(tmp_path, made):
    (tmp_path / "adapter").unlink()
    assert not Checksums(tmp_path).match(made)


def test_what_a_stage_hashed_is_taken_over(tmp_path, counted):
    (tmp_path / "big.gguf").write_text("weights")
    checksums = Checksums(tmp_path)
    told = Artifact(kind="gguf", path="big.gguf", sha256="known", bytes=7)
    checksums.remember(told)
    assert checksums.match(told)
    assert counted == []


def test_files_that_are_gone_are_forgotten(tmp_path, made):
    checksums = Checksums(tmp_path)
    checksums.match(made)
    (tmp_path / "adapter").unlink()
    checksums.save()
    assert artifacts.read_json(tmp_path / ".hashes.json")["known"] == {}
