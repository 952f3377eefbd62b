from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pytest

from tunerun.config import typed
from tunerun.config.schema import RunConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    size: int = 1
    kind: Literal["a", "off"] = "a"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    name: str
    rate: float = 0.5
    flag: bool = False
    limit: int | None = None
    words: tuple[str, ...] = ()
    open: Mapping[str, str] = field(default_factory=dict)
    closed: Mapping[Literal["a", "b"], int] = field(default_factory=dict)
    inner: Inner = Inner()


def test_plain_data_and_back_is_the_same_value():
    value = Outer(name="x", words=("a", "b"), open={"k": "v"}, inner=Inner(size=3))
    assert typed.build(Outer, typed.plain(value)) == (value, [])


def test_the_whole_default_config_round_trips():
    assert typed.build(RunConfig, typed.plain(RunConfig())) == (RunConfig(), [])


@pytest.mark.parametrize(
    ("data", "where", "what"),
    [
        ({"name": "x", "limit": "ten"}, "limit", "'ten' is not a whole number."),
        ({"name": "x", "limit": True}, "limit", "true is not a whole number."),
        ({"name": "x", "limit": 1.5}, "limit", "1.5 is not a whole number."),
        ({"name": "x", "flag": 1}, "flag", "1 is not true or false."),
        ({"name": "x", "rate": float("nan")}, "rate", "nan is not a number."),
        ({"name": "x", "words": None}, "words", "null is not a list."),
        ({"name": "x", "words": ["a", ["b"]]}, "words[1]", "['b'] is not a text."),
        ({"name": "x", "open": [1]}, "open", "[1] is not a mapping."),
        ({"name": "x", "closed": {"a": 1, "c": 2}}, "closed.c", "there is no `c` in `closed`."),
        ({"name": "x", "inner": 3}, "inner", "3 is not a section of keys."),
        ({"name": "x", "inner": {"kind": "b"}}, "inner.kind", "'b' is not one of its values."),
        ({"name": "x", "inner": {"sise": 1}}, "inner.sise", "there is no key `sise` in `inner`."),
        ({}, "name", "is missing."),
    ],
)
def test_a_fault_names_its_key(data, where, what):
    _, problems = typed.build(Outer, data)
    assert [(problem.where, problem.what) for problem in problems] == [(where, what)]


def test_all_faults_are_found_at_once_and_the_rest_is_kept():
    value, problems = typed.build(Outer, {"name": "x", "limit": "a", "flag": "b", "rate": 2, "inner": {"size": "c"}})
    assert [problem.where for problem in problems] == ["limit", "flag", "inner.size"]
    assert value == Outer(name="x", rate=2.0)


def test_numbers_become_texts_and_whole_numbers_floats_but_nothing_else_is_guessed():
    value, problems = typed.build(Outer, {"name": 7, "rate": 1, "words": "one"})
    assert problems == []
    assert value == Outer(name="7", rate=1.0, words=("one",))


def test_a_bare_off_that_yaml_read_as_false_is_off():
    value, _ = typed.build(Inner, {"kind": False})
    assert value == Inner(kind="off")


def test_suggestions_prefer_names_that_begin_alike():
    assert typed.nearest("qwen", ["qwen2.5-lora", "gemma", "qwen2.5-full"]) == (
        "Did you mean qwen2.5-full or qwen2.5-lora?"
    )
    assert typed.nearest("zzz", ["b", "a"]) == "Known: a, b."
