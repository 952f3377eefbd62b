"""Data sets of ModelScope: its own library downloads, of which a stand-in is used here."""

from __future__ import annotations

import sys
from fnmatch import fnmatch
from types import ModuleType

import pytest

from tunerun.data.read import find_files, read_file
from tunerun.errors import MissingExtra, StageError, UserError

FILES = {
    "README.md": "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train.jsonl\n---\n",
    "train.jsonl": '{"question": "007", "answer": "NA"}\n',
    "other.jsonl": "{}\n",
    "load.py": "raise SystemExit",
}


def stand_in(monkeypatch, download) -> None:
    """Puts modules with modelscope's names in place: the real one has no way to name another server."""
    package, errors, snapshot = (
        ModuleType(f"modelscope{name}") for name in ("", ".hub.errors", ".hub.snapshot_download")
    )
    errors.HubError = type("HubError", (Exception,), {})
    snapshot.dataset_snapshot_download = download
    for module in (package, ModuleType("modelscope.hub"), errors, snapshot):
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture
def asked(tmp_path, monkeypatch) -> dict:
    """What the library was asked for; it gives the files that match."""
    wanted: dict = {}

    def download(dataset_id, *, revision, cache_dir, allow_patterns):
        wanted.update(name=dataset_id, revision=revision, cache_dir=cache_dir)
        folder = tmp_path / "snapshot"
        folder.mkdir(exist_ok=True)
        for name, text in FILES.items():
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                (folder / name).write_text(text)
        return str(folder)

    stand_in(monkeypatch, download)
    return wanted


def test_the_files_of_a_split_are_found_and_no_code_is_downloaded(asked, tmp_path):
    (file,) = find_files(["org/set@v1"], cache_dir=tmp_path, hub="modelscope")
    assert asked == {"name": "org/set", "revision": "v1", "cache_dir": tmp_path}
    assert (file.name, file.source, file.revision) == ("org/set/train.jsonl", "org/set@v1", "v1")
    assert [row.value for row in read_file(file)] == [{"question": "007", "answer": "NA"}]
    assert not (tmp_path / "snapshot/load.py").exists()


def test_the_newest_revision_is_left_to_modelscope(asked):
    (file,) = find_files(["org/set"], hub="modelscope")
    assert (asked["revision"], file.revision) == (None, None)


def test_a_split_that_is_not_there_is_told(asked):
    with pytest.raises(UserError, match=r"has no split test\. It has train"):
        find_files(["org/set::test"], hub="modelscope")


def test_a_data_set_without_files_of_rows_is_told(asked, monkeypatch):
    for name in ("train.jsonl", "other.jsonl"):
        monkeypatch.delitem(FILES, name)
    with pytest.raises(UserError, match="org/set holds no files that are read"):
        find_files(["org/set"], hub="modelscope")


def test_a_failure_of_modelscope_is_one_clear_error(monkeypatch):
    def download(dataset_id, **options):
        raise sys.modules["modelscope.hub.errors"].HubError("no such data set")

    stand_in(monkeypatch, download)
    with pytest.raises(StageError, match="org/set cannot be downloaded from ModelScope: no such data set"):
        find_files(["org/set"], hub="modelscope")


def test_modelscope_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(MissingExtra, match=r"tunerun\[hub\]"):
        find_files(["org/set"], hub="modelscope")
