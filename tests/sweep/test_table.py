"""Trials by rank, and what is no trial to choose."""

from __future__ import annotations

import json

import pytest

from tunerun.errors import UserError
from tunerun.sweep import table
from tunerun.sweep.importance import Importances
from tunerun.sweep.table import Table
from tunerun.sweep.trials import Outcome


def row(trial: int, status: str = "done", **metrics: float) -> Outcome:
    parameters = {"data.system": "a|b"}
    return Outcome(trial=trial, parameters=parameters, status=status, exit_code=0, seconds=1.0, metrics=metrics)


def test_the_metric_says_which_end_is_the_best():
    rows = [row(0, eval_loss=2.0, tokens_per_second=5.0), row(1, eval_loss=1.0, tokens_per_second=4.0), row(2)]
    assert [item.trial for item in table.ranked(rows, ("eval_loss",))] == [1, 0, 2]
    assert [item.trial for item in table.ranked(rows, ("tokens_per_second",))] == [0, 1, 2]


def test_only_a_trial_that_ended_well_is_the_best():
    assert table.best([row(0, "failed", eval_loss=1.0), row(1, "skipped", eval_loss=2.0)], ("eval_loss",)).trial == 1
    assert table.best([row(0, "failed", eval_loss=1.0), row(1)], ("eval_loss",)) is None
    assert table.best([], ("eval_loss",)) is None


def test_results_are_read_as_they_were_written(tmp_path):
    importances = Importances(shares={"train.seed": 0.25, "method.rank": 0.5}, method="by chance")
    found = Table(rows=[row(0, eval_loss=0.1), row(1)], metrics=("eval_loss",), importances=importances)
    table.write(tmp_path, found)
    assert table.read(tmp_path) == found
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "| a\\|b |" in text
    assert "what eval_loss depends on: method.rank 50%, train.seed 25% (by chance)" in text
    assert table.render(found).splitlines()[-1] == text.splitlines()[-1]
    page = (tmp_path / "results.html").read_text(encoding="utf-8")
    assert "What eval_loss depends on" in page
    assert "method.rank: 50%" in page


def test_what_cannot_be_told_is_said_in_every_form(tmp_path):
    found = Table(rows=[row(0, eval_loss=0.1)], metrics=("eval_loss",), importances=Importances(lack="too few"))
    table.write(tmp_path, found)
    for name in ("results.md", "results.html"):
        assert "cannot be told: too few" in (tmp_path / name).read_text(encoding="utf-8")


def test_results_of_older_schemas_are_read(tmp_path):
    trial = {"trial": 0, "parameters": {}, "status": "done", "exit_code": 0, "seconds": 1.0, "metrics": {}}
    old = {"schema": 1, "metric": "eval_loss", "trials": [trial]}
    for data in (old, {**old, "schema": 2, "metrics": {"eval_loss": "lower"}, "importances": {"method.rank": 0.5}}):
        (tmp_path / "results.json").write_text(json.dumps(data))
        assert table.read(tmp_path) == Table(rows=[Outcome(**trial)], metrics=("eval_loss",))


def test_a_sweep_without_results_is_told_from_another_folder(tmp_path):
    with pytest.raises(UserError, match=r"not the directory of a sweep: no results\.json"):
        table.read(tmp_path)
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(UserError, match=r"no trial of the sweep has ended yet\..*tunerun resume"):
        table.read(tmp_path)


def test_results_of_another_schema_are_refused(tmp_path):
    (tmp_path / "results.json").write_text('{"schema": 99}')
    with pytest.raises(UserError, match="schema 99"):
        table.read(tmp_path)
