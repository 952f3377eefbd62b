"""The points of a grid, from what is typed and from what a recipe varies."""

from __future__ import annotations

import pytest

from tunerun.config.schema import ParameterConfig
from tunerun.errors import UserError
from tunerun.sweep import space
from tunerun.sweep.grid import Grid

GROUPS = frozenset({"model", "method"})


def expand(typed: list[str], params: dict[str, ParameterConfig] | None = None) -> list[list[str]]:
    grid = Grid(space.read(typed, params or {}, GROUPS), space.fixed(typed, GROUPS))
    return [list(trial.point) for trial in grid.samples()]


@pytest.mark.parametrize(
    ("typed", "points"),
    [
        (["seed=3"], [["seed=3"]]),
        (["seed=1,2"], [["seed=1"], ["seed=2"]]),
        (["seed=choice(1,2)"], [["seed=1"], ["seed=2"]]),
        (["seed=range(1,4)"], [["seed=1"], ["seed=2"], ["seed=3"]]),
        (["method=lora,full"], [["method=lora"], ["method=full"]]),
        (["+recipe=quickstart,sprout-instruct"], [["recipe=quickstart"], ["recipe=sprout-instruct"]]),
        (["data.path=[a,b],[c]"], [["data.path=[a,b]"], ["data.path=[c]"]]),
        (["data.system=你好,再见"], [['data.system="你好"'], ['data.system="再见"']]),
        ([], [[]]),
    ],
)
def test_each_axis_is_spelled_out(typed, points):
    assert expand(typed) == points


def test_the_last_axis_changes_fastest():
    assert expand(["a=1,2", "c=x", "b=3,4"]) == [
        ["c=x", "a=1", "b=3"],
        ["c=x", "a=1", "b=4"],
        ["c=x", "a=2", "b=3"],
        ["c=x", "a=2", "b=4"],
    ]


def test_a_recipes_choices_and_steps_are_points_too():
    params = {
        "method": ParameterConfig(choices=("lora", "full")),
        "method.dropout": ParameterConfig(low=0.0, high=0.35, step=0.1),
    }
    assert expand(["seed=7"], params)[:5] == [
        ["seed=7", "method=lora", "method.dropout=0.0"],
        ["seed=7", "method=lora", "method.dropout=0.1"],
        ["seed=7", "method=lora", "method.dropout=0.2"],
        ["seed=7", "method=lora", "method.dropout=0.3"],
        ["seed=7", "method=full", "method.dropout=0.0"],
    ]


def test_what_is_typed_takes_the_place_of_what_the_recipe_varies():
    params = {"method.rank": ParameterConfig(choices=(4, 8))}
    assert expand(["method.rank=16"], params) == [["method.rank=16"]]
    assert expand(["method.rank=1,2"], params) == [["method.rank=1"], ["method.rank=2"]]


def test_a_glob_takes_the_users_options_and_the_shipped_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/qwen3-mine.yaml").touch()
    found = [point[0] for point in expand(["model=glob(qwen3-*)"])]
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
        expand([typed])
