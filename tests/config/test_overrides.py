"""What a user types, as Hydra gets it, and what is said when it cannot be read."""

from __future__ import annotations

import pytest

from tunerun.config import overrides

GROUPS = frozenset({"model", "method", "own"})


@pytest.mark.parametrize(
    ("typed", "given"),
    [
        ("method.rank=8", "++method.rank=8"),
        ("+method.rank=8", "++method.rank=8"),
        ("++data.vars.name=x", "++data.vars.name=x"),
        ("recipe=a", "+recipe=a"),
        ("++recipe=a", "+recipe=a"),
        ("model=sprout", "model=sprout"),
        ("+model=sprout", "model=sprout"),
        ("+own=mine", "+own=mine"),
        ("method@a.b=lora", "method@a.b=lora"),
        ("~method.rank", "~method.rank"),
        ("~method=lora", "~method=lora"),
        ("hydra.searchpath=[x]", "hydra.searchpath=[x]"),
        ("data.system=你好", '++data.system="你好"'),
        ("model=小", 'model="小"'),
        ('data.system=say "hi" (now)', '++data.system="say \\"hi\\" (now)"'),
        ("data.columns={user: 问题}", '++data.columns={user:"问题"}'),
    ],
)
def test_what_is_typed_becomes_what_hydra_reads(typed, given):
    assert overrides.prepare(typed, GROUPS) == given


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("", "'': names no key. Write key=value."),
        ("=x", "'=x': names no key. Write key=value."),
        ("method.rank", "method.rank: is not a valid override: a value is missing. Write key=value."),
        ("quickstart", "quickstart: is not a valid override: a value is missing. Write +recipe=quickstart."),
        ("data.path[0]=x", ("data.path[0]=x: data.path[0] cannot be read as a key. "
                           "A list is set as a whole: data.path=[a,b].")),
        ("method.rank=4,", ("method.rank=4,: is not a valid override: it ends too early. "
                            "Write a value after the last comma, or remove the comma.")),
        ("method.rank=[8", "method.rank=[8: is not a valid override: its brackets do not match. Close each bracket."),
        ("method=", "method=: names no method. The options are in conf/method."),
        ("method=null", "method=null: names no method. The options are in conf/method."),
        ("recipe=", "recipe=: names no recipe. `tunerun recipes` lists them."),
        ("recipe=3.5", "recipe=3.5: the name of a recipe starts with a letter."),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_with_its_fix(typed, message):
    assert str(overrides.parse_problem(typed, GROUPS)) == message


@pytest.mark.parametrize("typed", ["~recipe", "~method", "~method=lora", "method=[lora,full]", "data.vars={a: b}"])
def test_what_hydra_can_read_is_no_problem(typed):
    assert overrides.parse_problem(typed, GROUPS) is None


def test_several_values_are_for_sweeps_only():
    found = str(overrides.parse_problem("method.rank=8,16", GROUPS))
    assert found.startswith("method.rank=8,16: has several values. A list is method.rank=[a,b]")
    assert overrides.parse_problem("method.rank=8,16", GROUPS, several=True) is None


def test_chosen_options_are_not_typed_keys_but_set_and_deleted_keys_are():
    typed = ["model=sprout", "method={rank: 8}", "~data.path", "seed=3", "+recipe=x", "~model"]
    assert overrides.typed_keys(typed, GROUPS) == {"method", "data.path", "seed"}


def test_a_key_and_its_value_are_split_with_the_values_type():
    assert overrides.key_and_value("data.path=[a, 2]") == ("data.path", ["a", 2])
