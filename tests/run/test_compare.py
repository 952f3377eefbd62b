"""What two runs differ in, and what says nothing about them."""

from __future__ import annotations

import json

import pytest

from tests.run import scenario
from tunerun import artifacts, columns
from tunerun.columns import MAX_COLUMNS
from tunerun.run import compare, results
from tunerun.run.compare import Difference

ROW = {"step": 1, "loss": 0.5, "seconds": 1.0, "tokens_per_second": 10.0, "eta_seconds": 0.0, "peak_memory_bytes": 1}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs of the same, as far as stand-in stages can tell."""
    scenario.use_stand_ins(monkeypatch.setattr)
    scenario.fill(tmp_path)
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        scenario.execute(folder, tmp_path / "rows.txt", tmp_path / "model")
    return folders


def between(runs) -> list[Difference]:
    return compare.differences(*(results.read(folder) for folder in runs))


def log(folder, **changed) -> None:
    (folder / artifacts.METRICS).write_text(json.dumps({**ROW, **changed}) + "\n", encoding="utf-8")


def test_two_runs_of_the_same_differ_in_nothing(runs):
    assert between(runs) == []
    assert compare.render([], ("first", "second")) == "no differences"


def test_how_fast_and_how_busy_the_machine_was_is_no_difference(runs):
    log(runs[0], gpu_utilisation=0.5, mfu=0.1)
    log(runs[1], gpu_utilisation=0.9, mfu=0.2, seconds=2.0, tokens_per_second=5.0, peak_memory_bytes=2)
    assert between(runs) == []


def test_a_loss_that_differs_in_the_last_bit_is_one(runs):
    log(runs[0])
    log(runs[1], loss=0.5000000000000001)
    assert {item.section for item in between(runs)} == {"metrics"}
    assert "all of metrics.jsonl but times" in [item.key for item in between(runs)]


def test_an_artifact_and_the_choice_that_made_it_are_both_named(runs, tmp_path):
    third = tmp_path / "third"
    scenario.execute(third, tmp_path / "rows.txt", tmp_path / "model", learning_rate=1e-3)
    found = [(item.section, item.key) for item in between([runs[0], third])]
    assert ("config", "train.learning_rate") in found
    assert ("artifacts", "adapter") in found


def test_what_one_run_lacks_is_a_dash_and_what_is_unset_is_null():
    found = compare.compare("config", {"a": None, "b": 1}, {"a": 0.1, "c": ""})
    assert [(item.key, item.first, item.second) for item in found] == [
        ("a", "null", "0.1"),
        ("b", "1", "-"),
        ("c", "-", "''"),
    ]


def test_the_table_fits_a_terminal():
    found = compare.compare("config", {"k" * 99: "数" * 200}, {"k" * 99: "two\nlines" * 50})
    lines = compare.render(found, ("first" * 30, "second" * 30)).splitlines()
    assert len(lines) == 3
    assert all(columns.width(line) <= MAX_COLUMNS for line in lines)
