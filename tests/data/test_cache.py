from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunerun import paths
from tunerun.config.schema import DataConfig, ObjectiveConfig
from tunerun.data import cache
from tunerun.data.rows import DataFile
from tunerun.plan.steps import DataStep

MODEL = Path(paths.resolve_asset("tunerun://sprout"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def step(**settings) -> DataStep:
    return DataStep(data=DataConfig(**settings), objective=ObjectiveConfig(), chat_template=None, seed=1)


def rows(tmp_path, text='{"text": "a"}\n', name="rows.jsonl") -> DataFile:
    path = tmp_path / name
    path.write_text(text)
    return DataFile(path, str(path), str(path))


def prepared(tmp_path, name="made") -> Path:
    folder = tmp_path / name
    (folder / "eval").mkdir(parents=True)
    (folder / "tokens.u32").write_bytes(b"\1\0\0\0" * 1000)
    (folder / "eval" / "tokens.u32").write_bytes(b"\2\0\0\0")
    (folder / "report.json").write_text("{}")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_what_is_kept_is_taken_again_without_a_copy(tmp_path):
    folder = prepared(tmp_path)
    cache.keep("k", folder)
    assert cache.take("k", tmp_path / "second")
    assert content(tmp_path / "second") == content(folder)
    assert (tmp_path / "second/tokens.u32").stat().st_ino == (folder / "tokens.u32").stat().st_ino


def test_what_is_not_kept_is_not_found(tmp_path):
    assert not cache.take("k", tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_the_key_is_that_of_the_bytes_and_the_settings(tmp_path):
    file = rows(tmp_path)
    keys = [
        cache.key_of(step(), [file], MODEL),
        cache.key_of(step(max_length=64), [file], MODEL),
        cache.key_of(step(), [rows(tmp_path, '{"text": "b"}\n')], MODEL),
        cache.key_of(step(), [file, file], MODEL),
        cache.key_of(step(), [], MODEL),
    ]
    assert len(set(keys)) == 5
    rows(tmp_path)
    assert cache.key_of(step(), [file], MODEL) == keys[0]
    assert cache.key_of(step(cache=False), [file], MODEL) == keys[0]


def test_another_tokenizer_or_template_is_another_key(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for source in (*MODEL.glob("*.json"), *MODEL.glob("*.jinja")):
        (model / source.name).write_bytes(source.read_bytes())
    file = rows(tmp_path)
    before = cache.key_of(step(), [file], model)
    assert before == cache.key_of(step(), [file], MODEL)
    tokenizer = model / "tokenizer.json"
    tokenizer.write_text(json.dumps({**json.loads(tokenizer.read_text()), "version": "9"}))
    changed = cache.key_of(step(), [file], model)
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert len({before, changed, cache.key_of(step(), [file], model)}) == 3


def test_another_version_of_what_reads_and_tokenises_is_another_key(tmp_path, monkeypatch):
    file = rows(tmp_path)
    real = importlib.metadata.version
    before = cache.key_of(step(), [file], MODEL)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9" if name == "tokenizers" else real(name))
    assert cache.key_of(step(), [file], MODEL) != before


def test_a_changed_entry_is_not_taken_and_is_replaced(tmp_path):
    folder = prepared(tmp_path)
    cache.keep("k", folder)
    os.utime(folder / "tokens.u32")
    # The link in the run directory is the file in the cache.
    (folder / "tokens.u32").write_bytes(b"\3\0\0\0" * 1000)
    assert not cache.take("k", tmp_path / "second")
    good = prepared(tmp_path, "again")
    cache.keep("k", good)
    assert cache.take("k", tmp_path / "third")
    assert content(tmp_path / "third") == content(good)


def test_the_entries_used_least_recently_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "LIMIT_BYTES", 15_000)
    for number, name in enumerate("abc"):
        cache.keep(name, prepared(tmp_path, name))
        os.utime(paths.user_cache() / "data" / name, (number, number))
    assert cache.take("a", tmp_path / "used")
    cache.keep("d", prepared(tmp_path, "d"))
    assert [cache.take(name, tmp_path / f"taken-{name}") for name in "abcd"] == [True, False, True, True]


def test_a_cache_that_cannot_be_written_is_said_and_does_not_stop_the_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with cache.one_at_a_time("k"):
        cache.keep("k", prepared(tmp_path))
    assert not cache.take("k", tmp_path / "second")
    assert "not kept for later runs" in capsys.readouterr().out


def test_a_cache_that_can_only_be_read_serves_all_the_same(tmp_path, monkeypatch):
    folder = prepared(tmp_path)
    cache.keep("k", folder)

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    assert cache.take("k", tmp_path / "second")
    assert content(tmp_path / "second") == content(folder)


def test_an_entry_that_cannot_be_read_is_said_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    cache.keep("k", prepared(tmp_path))
    real, calls = cache._link, []

    def link(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise PermissionError(errno.EACCES, "Permission denied")
        real(source, target)

    monkeypatch.setattr(cache, "_link", link)
    assert not cache.take("k", tmp_path / "second")
    assert not (tmp_path / "second").exists()
    assert "cannot be taken from the cache: Permission denied" in capsys.readouterr().out


def test_a_disk_that_is_full_while_data_are_kept_leaves_no_entry(tmp_path, monkeypatch, capsys):
    def link(source, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"cut")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "_link", link)
    cache.keep("k", prepared(tmp_path))
    assert list((paths.user_cache() / "data").iterdir()) == []
    assert "not kept for later runs: No space left" in capsys.readouterr().out


@pytest.mark.parametrize("listed", ["", "[]", '{"schema": 0, "files": {}}'])
def test_an_entry_of_another_version_is_not_taken_and_is_replaced(listed, tmp_path):
    folder = prepared(tmp_path)
    cache.keep("k", folder)
    (paths.user_cache() / "data/k/entry.json").write_text(listed)
    assert not cache.take("k", tmp_path / "second")
    cache.keep("k", folder)
    assert cache.take("k", tmp_path / "third")


def test_a_file_system_without_locks_is_said_and_does_not_stop_the_run(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with cache.one_at_a_time("k"):
        cache.keep("k", prepared(tmp_path))
    assert "has no locks" in capsys.readouterr().out
    assert cache.take("k", tmp_path / "second")


_WORKER = """
import sys, time
from pathlib import Path
from tunerun.data import cache
folder = Path(sys.argv[1])
with cache.one_at_a_time("k"):
    if cache.take("k", folder):
        print("taken")
    else:
        folder.mkdir()
        (folder / "rows").write_text("x")
        time.sleep(0.3)
        cache.keep("k", folder)
        print("made")
"""


def test_of_concurrent_runs_one_prepares_and_the_others_take(tmp_path):
    workers = [
        subprocess.Popen([sys.executable, "-c", _WORKER, str(tmp_path / f"run-{n}")], stdout=subprocess.PIPE, text=True)
        for n in range(4)
    ]
    said = sorted(worker.communicate(timeout=60)[0].split()[-1] for worker in workers)
    assert said == ["made", "taken", "taken", "taken"]
    assert [(tmp_path / f"run-{n}/rows").read_text() for n in range(4)] == ["x"] * 4


def test_a_hit_costs_at_most_50_milliseconds(tmp_path):
    file = rows(tmp_path, '{"text": "a"}\n' * 10_000)
    with (tmp_path / "large").open("wb") as stream:
        stream.truncate(200 << 20)
    folder = prepared(tmp_path)
    (tmp_path / "large").rename(folder / "large")
    cache.keep(cache.key_of(step(), [file], MODEL), folder)
    seconds = []
    for number in range(10):
        began = time.perf_counter()
        assert cache.take(cache.key_of(step(), [file], MODEL), tmp_path / f"hit-{number}")
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.05
