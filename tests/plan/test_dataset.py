"""The guess at how much data there is."""

from __future__ import annotations

import gzip
import json

import pytest

from tunerun.config.schema import DataConfig, SourceConfig
from tunerun.plan.dataset import DataSize, measure


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_rows_of_small_files_are_counted(tmp_path):
    lines = write(tmp_path / "a.jsonl", '{"x": 1}\n' * 7)
    array = write(tmp_path / "b.json", json.dumps([{"x": "[, ]"}] * 5, indent=2))
    assert measure(DataConfig(path=(lines,))) == DataSize(rows=7, tokens=63 // 4, longest=2)
    assert measure(DataConfig(path=(array,))).rows == 5
    assert measure(DataConfig(path=(lines, array))).rows == 12


@pytest.mark.parametrize("separator", ["\n", ", "])
def test_the_rows_of_a_large_file_are_guessed_from_its_start(tmp_path, separator):
    row = json.dumps({"instruction": "say something", "output": "x" * 100})
    text = separator.join([row] * 5000)
    path = write(tmp_path / "rows", text if separator == "\n" else f"[{text}]")
    assert measure(DataConfig(path=(path,))).rows == pytest.approx(5000, rel=0.01)


def test_the_longest_row_of_the_beginning_is_told(tmp_path):
    rows = [{"x": "word " * count} for count in (3, 400, 20)]
    lines = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    array = write(tmp_path / "b.json", json.dumps(rows, indent=2))
    for path in (lines, array):
        assert measure(DataConfig(path=(path,))).longest == pytest.approx(2010 / 4, rel=0.02)
    assert measure(DataConfig(path=(write(tmp_path / "c.txt", "no end of line"),))).longest == 4


def test_a_folder_counts_all_its_files(tmp_path):
    write(tmp_path / "set/a.jsonl", "{}\n" * 3)
    write(tmp_path / "set/deep/b.jsonl", "{}\n" * 4)
    assert measure(DataConfig(path=("set",))).rows == 7


def test_a_byte_order_mark_and_chinese_do_not_disturb(tmp_path):
    path = write(tmp_path / "中文 (1).json", "\ufeff" + json.dumps([{"问": "答"}] * 3, ensure_ascii=False))
    assert measure(DataConfig(path=(path,))).rows == 3


@pytest.mark.parametrize("source", ["org/name", "nothing.jsonl", "empty"])
def test_what_is_not_here_tells_nothing(source, tmp_path):
    (tmp_path / "empty").mkdir()
    assert measure(DataConfig(path=(source,))) is None


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.zst", "A.XLSX", "a.xlsm", "a.parquet", "a.arrow"])
def test_a_compressed_file_tells_nothing(name, tmp_path):
    (tmp_path / name).write_bytes(gzip.compress(b"{}\n" * 9))
    assert measure(DataConfig(path=(name,))) is None


def test_an_empty_file_has_no_rows(tmp_path):
    assert measure(DataConfig(path=(write(tmp_path / "a.jsonl", ""),))) == DataSize(rows=0, tokens=0, longest=0)


def test_a_shipped_data_set_is_found_by_its_address():
    assert measure(DataConfig(path=("tunerun://identity.jsonl",))).rows > 10


def test_a_source_counts_as_often_as_its_weight_says(tmp_path):
    lines = write(tmp_path / "a.jsonl", '{"a": 1}\n' * 8)
    few = SourceConfig(path=(lines,), max_rows=4)
    twice = SourceConfig(path=(lines,), weight=2.0)
    assert measure(DataConfig(sources={"few": few, "twice": twice})) == DataSize(rows=20, tokens=9 + 36, longest=2)
