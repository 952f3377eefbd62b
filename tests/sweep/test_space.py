"""Ranges and choices, from Hydra's grammar and from recipes, and what makes no sense."""

from __future__ import annotations

import pytest

from tunerun.config.schema import ParameterConfig
from tunerun.errors import UserError
from tunerun.sweep import space
from tunerun.sweep.space import Axis

GROUPS = frozenset({"model", "method"})


def one(typed: str) -> Axis:
    (axis,) = space.read([typed], {}, GROUPS)
    return axis


def param(key: str, **values: object) -> Axis:
    (axis,) = space.read([], {key: ParameterConfig(**values)}, GROUPS)
    return axis


def test_an_interval_is_a_range_of_the_numbers_that_the_key_holds():
    rate = one("train.learning_rate=tag(log,interval(1e-5,1e-3))")
    assert (rate.low, rate.high, rate.log, rate.integer, rate.points) == (1e-5, 1e-3, True, False, ())
    assert rate.ends == ("1e-05", "0.001")
    rank = one("method.rank=interval(2,64)")
    assert (rank.low, rank.high, rank.integer) == (2, 64, True)
    assert rank.ends == ("2", "64")


def test_a_range_with_a_step_can_be_counted_and_searched():
    axis = one("method.rank=range(4,33,4)")
    assert axis.points == ("4", "8", "12", "16", "20", "24", "28", "32")
    assert (axis.low, axis.high, axis.step, axis.integer) == (4, 32, 4, True)


def test_a_recipes_range_is_the_same_as_a_typed_one():
    assert param("train.learning_rate", low=1e-5, high=1e-3, log=True) == one(
        "train.learning_rate=tag(log,interval(1e-5,1e-3))"
    )
    assert param("method.rank", low=4, high=33, step=4).points == one("method.rank=range(4,33,4)").points


def test_choices_are_spelled_as_overrides():
    axis = param("export.gguf.types", choices=(["q4_k_m"], ["q8_0", "f16"]))
    assert axis.points == ("[q4_k_m]", "[q8_0,f16]")
    assert param("data.system", choices=("Be brief.", "你好", None, "null", True)).points == (
        '"Be brief."',
        '"你好"',
        "null",
        '"null"',
        "true",
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"low": 3, "high": 1}, "from a smaller to a larger"),
        ({"low": 0, "high": 1, "log": True}, "starts above 0"),
        ({"low": 1, "high": 3, "step": -1}, "above 0"),
        ({"low": 1, "high": 3, "log": True, "step": 1}, "even range only"),
        ({"low": 1}, "neither choices nor both ends"),
        ({}, "neither choices nor both ends"),
        ({"choices": (1,), "low": 1, "high": 2}, "choices and a range"),
    ],
)
def test_what_makes_no_sense_is_told(values, message):
    with pytest.raises(UserError, match=message):
        param("method.alpha", **values)


@pytest.mark.parametrize("typed", ["sweep.trials=1,2", "run_dir=a,b"])
def test_what_a_sweep_has_once_is_not_varied(typed):
    with pytest.raises(UserError, match="the same for all trials"):
        one(typed)


def test_an_unknown_tag_is_told():
    with pytest.raises(UserError, match="The only tag is log"):
        one("train.learning_rate=tag(lgo,interval(1e-5,1e-3))")
