import os

import pytest

from tunerun import artifacts
from tunerun.run.hashes import Hashes


@pytest.fixture
def counted(monkeypatch):
    """Counts how often something is really read."""
    read = []
    real = artifacts.describe
    monkeypatch.setattr(artifacts, "describe", lambda *arguments: read.append(arguments) or real(*arguments))
    return read


def test_a_file_is_read_once_over_two_executions(tmp_path, counted):
    file = tmp_path / "rows.jsonl"
    file.write_text("rows")
    first = Hashes(tmp_path)
    digest = first.sha256(file)
    first.save()
    assert Hashes(tmp_path).sha256(file) == digest == artifacts.sha256(file)
    assert len(counted) == 1


def test_a_changed_file_of_equal_size_is_read_again(tmp_path, counted):
    file = tmp_path / "rows.jsonl"
    file.write_text("rows")
    hashes = Hashes(tmp_path)
    before = hashes.sha256(file)
    os.utime(file, ns=(1, 1))
    file.write_text("wors")
    assert hashes.sha256(file) != before


def test_a_replaced_file_with_the_same_time_is_read_again(tmp_path):
    file, other = tmp_path / "rows.jsonl", tmp_path / "other"
    file.write_text("rows")
    other.write_text("wors")
    hashes = Hashes(tmp_path)
    before = hashes.sha256(file)
    stat = file.stat()
    other.replace(file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert hashes.sha256(file) != before


def test_a_folder_is_hashed_as_artifacts_are(tmp_path):
    folder = tmp_path / "merged"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/a").write_text("a")
    (folder / "b").write_text("b")
    assert Hashes(tmp_path).sha256(folder) == artifacts.describe(tmp_path, "model", "merged").sha256


def test_what_a_stage_hashed_is_taken_over(tmp_path, counted):
    (tmp_path / "big.gguf").write_text("weights")
    hashes = Hashes(tmp_path)
    hashes.remember(tmp_path / "big.gguf", "known")
    assert hashes.sha256(tmp_path / "big.gguf") == "known"
    assert counted == []


def test_files_that_are_gone_are_forgotten(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("rows")
    hashes = Hashes(tmp_path)
    hashes.sha256(file)
    file.unlink()
    hashes.save()
    assert artifacts.read_json(tmp_path / ".hashes.json")["known"] == {}
