from __future__ import annotations

import pytest

from tunerun.data.placeholders import fill
from tunerun.data.rows import RowFault


def test_placeholders_are_filled_in_every_text():
    value = {"a": ["I am {{name}}.", {"b": "{{ name }} {{author}}"}], "n": 1}
    assert fill(value, {"name": "N", "author": "A"}, strict=True) == {"a": ["I am N.", {"b": "N A"}], "n": 1}


def test_an_unfilled_placeholder_is_a_fault_only_when_strict():
    with pytest.raises(RowFault, match=r"\{\{author\}\} has no value"):
        fill("{{name}} {{author}}", {"name": "N"}, strict=True)
    assert fill("{{name}} {{author}}", {"name": "N"}, strict=False) == "N {{author}}"


@pytest.mark.parametrize(
    "text",
    [
        "I am {{name}}.",
        "**{{name}}**",
        "我是{{name}}，",
        "({{name}})",
        "{{name}}'s",
        "Name:{{name}}",
        '"{{name}}"',
        "-{{name}}",
    ],
)
def test_a_placeholder_in_prose_is_found(text):
    with pytest.raises(RowFault, match=r"\{\{name\}\}"):
        fill(text, {}, strict=True)


@pytest.mark.parametrize(
    "text",
    [
        "{{ spaced }} {{}} {{1}} {name} {{ secrets.TOKEN }}",
        r"\\frac{{n}}{2} and x^{{k}} and \\sqrt{{n}}",
        "Write `{{user}}` in the template.",
        "```html\n<p>{{user}}</p>\nHello {{user}}\n```",
        "<p>Hello {{user}}</p>",
        "url: /items/{{id}}/edit?x={{page}}",
        'f"{x}" and ${{amount}}',
    ],
)
def test_code_latex_and_markup_are_left_alone(text):
    assert fill(text, {}, strict=True) == text


def test_a_named_placeholder_is_filled_in_code_too():
    assert fill("`{{user}}` {{user}}", {"user": "U"}, strict=True) == "`U` U"


def test_a_value_that_looks_like_a_placeholder_is_not_filled_again():
    assert fill("{{a}}", {"a": "{{b}}"}, strict=True) == "{{b}}"
