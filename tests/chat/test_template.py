from __future__ import annotations

import json
import random

import pytest

from tunerun.chat.faults import ChatFault
from tunerun.chat.template import FROZEN_DATE, ChatTemplate, load_template, shipped_names, without_generation_blocks
from tunerun.errors import UserError

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def template(text: str, **changes) -> ChatTemplate:
    return ChatTemplate(**{"text": text, "tool_text": None, "variables": TOKENS, "source": "test", **changes})


def render(text: str, content: str = "hi", **options) -> str:
    return template(text).render([{"role": "user", "content": content}], **options)


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Gets the weather in <a> "city" & 城市.',
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Which"}},
            "required": ["city"],
        },
    },
}
TEXTS = (
    "Hi",
    " spaced \n",
    "世界\n\nzwei",
    "<think>\nhm\n</think>\n\nYes",
    "a 'quote' \"b\" & <c>",
    "/no_think",
    "\n\nlines\n",
)


def random_conversation(source: random.Random, *, with_tools: bool) -> list[dict]:
    messages = [{"role": "system", "content": source.choice(TEXTS)}] if source.random() < 0.5 else []
    for _ in range(source.randint(1, 3)):
        messages.append({"role": "user", "content": source.choice(TEXTS)})
        if with_tools and source.random() < 0.6:
            function = {"name": "get_weather", "arguments": {"city": source.choice(TEXTS), "days": 3}}
            call = {"type": "function", "id": "call00000", "function": function}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            messages.append({"role": "tool", "content": '{"sky": "雨"}', "tool_call_id": "call00000"})
        messages.append({"role": "assistant", "content": source.choice(TEXTS)})
    return messages[: source.randint(1, len(messages))]


def test_json_is_neither_escaped_nor_sorted():
    text = "{{ {'b': '<é>', 'a': messages[0].content} | tojson }} {{ [1] | tojson(indent=1) }}"
    assert render(text) == '{"b": "<é>", "a": "hi"} [\n 1\n]'


def test_blocks_are_trimmed_as_in_transformers():
    assert render("{% if true %}\n  {% set x = 1 %}\nA{{ x }}\n{% endif %}\n") == "A1\n"


def test_loop_controls_work():
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"


def test_the_date_is_frozen():
    assert render("{{ strftime_now('%d %b %Y') }}") == "26 Jul 2024"


def test_special_tokens_are_variables():
    assert render("{{ bos_token }}|{{ eos_token }}|{{ pad_token }}") == "<s>|</s>|"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{{ raise_exception('no system') }}", "no system"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "not safely callable|unsafe|immutable"),
        ("{{ messages[0].content + none }}", "concatenate"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ messages[0].content[9][0] + 1 }}", "has no element 9"),
        ("{{ 2.0 ** 9999 }}", "OverflowError"),
        ("{{ 'abc' | list | random + {} }}", "TypeError"),
        ("{{ '%d' % 'x' }}", "TypeError"),
        ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "recursion"),
        ("{{ 'x'.encode('no such') }}", "LookupError"),
        ("{{ dict(a=1).a.b.c }}", "has no attribute 'b'"),
        ("{{ missing.field }}", "undefined"),
        ("{% for i in range(10000000) %}{% endfor %}", "Range too big"),
    ],
)
def test_a_refusal_or_failure_of_the_template_is_a_fault(text, what):
    with pytest.raises(ChatFault, match=what) as caught:
        render(text)
    assert caught.value.reason == "template-refuses"


MARKED = "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}{{ m.content }}!{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"  # noqa: E501


def test_generation_blocks_give_spans_and_leave_no_trace():
    messages = [{"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("user", "r"))]
    text, spans = template(MARKED).render_marked([*messages, {"role": "assistant", "content": "b"}], None)
    assert text == "[user]q[assistant]a![user]r[assistant]b!"
    assert [text[start:end] for start, end in spans] == ["a!", "b!"]
    assert template(MARKED).render(messages) == "[user]q[assistant]a![user]r"


def test_a_template_without_generation_blocks_leaves_every_character():
    odd = "\U0010fdd0a\U0010fdd1"
    assert template("{{ messages[0].content }}").render([{"role": "user", "content": odd}]) == odd


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a {% generation %}b{% endgeneration %} c", "a {% if true %}b{% endif %} c"),
        ("a {%- generation -%} b {%-endgeneration%}", "a {%- if true -%} b {%- endif %}"),
        ("a {{ generation }} c", "a {{ generation }} c"),
    ],
)
def test_training_marks_are_left_out(source, expected):
    assert without_generation_blocks(source) == expected


def test_generation_spans_equal_those_of_transformers():
    from transformers.utils.chat_template_utils import render_jinja_template

    source = random.Random(0)
    for _ in range(50):
        messages = random_conversation(source, with_tools=False)
        theirs, spans = render_jinja_template([messages], chat_template=MARKED, return_assistant_tokens_mask=True)
        assert template(MARKED).render_marked(messages, None) == (theirs[0], spans[0])


def test_a_template_of_its_own_is_used_when_tools_are_given():
    both = template("plain", tool_text="with tools")
    assert both.render([]) == "plain"
    assert both.render([], [TOOL]) == "with tools"


def test_the_file_goes_before_the_config_and_a_name_before_both(tmp_path):
    assert load_template(tmp_path, TOKENS) is None
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "config"}')
    assert load_template(tmp_path, TOKENS).text == "config"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert load_template(tmp_path, TOKENS).text == "file"
    assert "<|im_start|>" in load_template(tmp_path, TOKENS, "chatml").text


def test_several_templates_in_the_config(tmp_path):
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    found = load_template(tmp_path, TOKENS)
    assert (found.text, found.tool_text) == ("plain", "tools")


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(UserError, match="chatml") as caught:
        load_template(tmp_path, TOKENS, "chatlm")
    assert caught.value.problems[0].where == "model.chat_template"


def test_a_syntax_error_names_file_and_line(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("ok\n{% if %}")
    with pytest.raises(UserError) as caught:
        load_template(tmp_path, TOKENS)
    assert caught.value.problems[0].where == f"{tmp_path / 'chat_template.jinja'}:2"


def test_the_hash_covers_text_variables_and_date():
    hashes = {
        template("a").sha256,
        template("b").sha256,
        template("a", tool_text="t").sha256,
        template("a", variables={}).sha256,
        template("a", date=FROZEN_DATE.replace(year=2025)).sha256,
    }
    assert len(hashes) == 5


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_template_shows_all_texts_in_order(name, tmp_path):
    texts = ("Be kind.", "One?", "1.", "Two?", "2.")
    roles = ("system", "user", "assistant", "user", "assistant")
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    made = load_template(tmp_path, TOKENS, name)
    rendered = made.render(messages)
    places = [rendered.index(text) for text in texts]
    assert places == sorted(places)
    assert rendered.startswith(made.render(messages[:-1], generation_prompt=True))
    assert load_template(tmp_path, {"eos_token": "</s>"}, name).render(messages).count("<s>") == 0
