from __future__ import annotations

from dataclasses import replace

import pytest

from tunerun.config import teacher
from tunerun.config.schema import AnswerConfig, ObjectiveConfig, RunConfig

GOOD = AnswerConfig(url="https://api.example.com/v1", model="big", api_key_env="KEY", prompts=("rows.jsonl",))


def problems(**changes) -> dict[str, str]:
    config = RunConfig(stages=("answer", "data", "train"), answer=replace(GOOD, **changes))
    return {problem.where: f"{problem.what} {problem.fix}" for problem in teacher.check(config)}


@pytest.mark.parametrize(
    "changes",
    [{}, {"url": "http://127.0.0.1:8000/v1"}, {"url": "http://localhost:8000/v1"}, {"url": "http://[::1]:8000/v1/"},
     {"url": "http://10.0.0.5:8000/v1", "api_key_env": None}, {"extra": {"seed": None, "top_k": 5}}],
)  # fmt: skip
def test_what_can_be_asked_is_accepted(changes):
    assert problems(**changes) == {}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (None, "no endpoint is named"),
        ("api.example.com/v1", "no address of a web server"),
        ("htps://api.example.com/v1", "no address of a web server"),
        ("https:///v1", "no address of a web server"),
        ("https://api.example.com:80x/v1", "its port cannot be read"),
        ("https://user:secret1234@api.example.com/v1", "a user name or a password"),
        ("https://secret1234@api.example.com/v1", "a user name or a password"),
        ("https://api.example.com/v1?api_key=secret1234", "after ?"),
        ("https://api.example.com/v1/chat/completions", "Leave /chat/completions out"),
        ("http://10.0.0.5:8000/v1", "without encryption"),
    ],
)
def test_an_address_that_would_not_do_is_refused_without_repeating_it(url, said):
    found = problems(url=url)["answer.url"]
    assert said in found
    assert "secret1234" not in found


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"model": None}, "answer.model"),
        ({"prompts": ()}, "answer.prompts"),
        ({"columns": {"assistant": "a"}}, "answer.columns.assistant"),
        ({"samples": 2, "temperature": 0.0}, "answer.samples"),
        ({"extra": {"seed": 3}}, "answer.extra.seed"),
        ({"extra": {"stream": True}}, "answer.extra.stream"),
    ],
)
def test_what_cannot_be_asked_is_named(changes, where):
    assert set(problems(**changes)) == {where}


def test_without_the_stage_nothing_is_said():
    assert teacher.check(RunConfig(answer=AnswerConfig(url="nonsense"))) == []


def test_answers_are_conversations_which_not_every_objective_learns_from():
    config = RunConfig(stages=("answer", "data"), answer=GOOD, objective=ObjectiveConfig(kind="dpo"))
    assert [problem.where for problem in teacher.check(config)] == ["objective.kind"]
