"""The points of a grid, from what is typed."""

from __future__ import annotations

import pytest

from tunerun.errors import UserError
from tunerun.sweep.grid import expand

GROUPS = frozenset({"model", "method"})


@pytest.mark.parametrize(
    ("typed", "points"),
    [
        (["seed=3"], [["seed=3"]]),
        (["seed=1,2"], [["seed=1"], ["seed=2"]]),
        (["seed=range(1,4)"], [["seed=1"], ["seed=2"], ["seed=3"]]),
        (["method=lora,full"], [["method=lora"], ["method=full"]]),
        (["+recipe=quickstart,sprout-instruct"], [["recipe=quickstart"], ["recipe=sprout-instruct"]]),
        (["data.path=[a,b],[c]"], [["data.path=[a,b]"], ["data.path=[c]"]]),
        (["data.system=你好,再见"], [['data.system="你好"'], ['data.system="再见"']]),
        ([], [[]]),
    ],
)
def test_each_axis_is_spelled_out(typed, points):
    assert expand(typed, GROUPS) == points


def test_the_last_axis_changes_fastest():
    assert expand(["a=1,2", "c=x", "b=3,4"], GROUPS) == [
        ["a=1", "c=x", "b=3"],
        ["a=1", "c=x", "b=4"],
        ["a=2", "c=x", "b=3"],
        ["a=2", "c=x", "b=4"],
    ]


def test_a_glob_takes_the_users_options_and_the_shipped_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/qwen3-mine.yaml").touch()
    found = [point[0] for point in expand(["model=glob(qwen3-*)"], GROUPS)]
    assert found == [f"model=qwen3-{name}" for name in ("0.6b", "1.7b", "4b", "8b", "mine")]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("model=glob(nothing*)", "matches nothing"),
        ("seed=range(3,1)", "has no values"),
        ("train.learning_rate=interval(0,1)", "a grid needs values it can count"),
        ("seed", "a value is missing"),
    ],
)
def test_an_axis_without_points_is_refused(typed, message):
    with pytest.raises(UserError, match=message):
        expand([typed], GROUPS)
