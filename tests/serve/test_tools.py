from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunerun.chat.tool_calls import TOOL_FORMATS
from tunerun.serve.tools import Call, Part, ToolParser, forced_beginning, forced_schema

NAMES = ("look", "get.weather-2")
LOOK = Call("look", '{"at": "fox"}')
HERMES = '<tool_call>\n{"name": "look", "arguments": {"at": "fox"}}\n</tool_call>'
LLAMA = '{"name": "look", "parameters": {"at": "fox"}}'
MISTRAL = '[TOOL_CALLS] [{"name": "look", "arguments": {"at": "fox"}}]'


def parse(style: str, *pieces: str) -> list[Part]:
    parser = ToolParser(TOOL_FORMATS[style], NAMES)
    found = [part for piece in pieces for part in parser.push(piece)]
    return merged([*found, *parser.flush()])


def merged(parts: list[Part]) -> list[Part]:
    result: list[Part] = []
    for part in parts:
        if isinstance(part, str) and result and isinstance(result[-1], str):
            result[-1] += part
        else:
            result.append(part)
    return result


@pytest.mark.parametrize(
    ("style", "text", "expected"),
    [
        ("hermes", HERMES, [LOOK]),
        ("hermes", f"I look.\n{HERMES}\n{HERMES}", ["I look.", LOOK, LOOK]),
        ("hermes", f"{HERMES}\nThere it is.", [LOOK, "There it is."]),
        ("hermes", HERMES.removesuffix("</tool_call>"), [LOOK]),
        ("hermes", HERMES.removesuffix("l>"), [LOOK]),
        ("hermes", '<tool_call>{"name": "look", "arguments": {"at": "</tool_call>{"}}</tool_call>',
         [Call("look", '{"at": "</tool_call>{"}')]),
        ("hermes", '<tool_call>{"name": "look", "arguments": "{\\"at\\": \\"fox\\"}"}</tool_call>', [LOOK]),
        ("hermes", '<tool_call>{"name": "look", "arguments": {"at": "\\"}{你"}}</tool_call>',
         [Call("look", '{"at": "\\"}{你"}')]),
        ("llama3_json", LLAMA, [LOOK]),
        ("llama3_json", f"\n {LLAMA}", [LOOK]),
        ("llama3_json", f"<|python_tag|>{LLAMA}", [LOOK]),
        ("llama3_json", f"<|python_tag|>{LLAMA}; {LLAMA}", [LOOK, LOOK]),
        ("llama3_json", f"{LLAMA}; {LLAMA}", [LOOK, LOOK]),
        ("llama3_json", f"I look. <|python_tag|>{LLAMA}", ["I look.", LOOK]),
        ("mistral", MISTRAL, [LOOK]),
        ("mistral", MISTRAL.replace("}]", "}, ") + LLAMA + "]", [LOOK, LOOK]),
        ("mistral", f"Well {MISTRAL}", ["Well", LOOK]),
        ("mistral", '[TOOL_CALLS]look[ARGS]{"at": "fox"}[TOOL_CALLS]look{"at": "fox"}', [LOOK, LOOK]),
    ],
)  # fmt: skip
def test_calls_are_found(style, text, expected):
    assert parse(style, text) == expected
    assert parse(style, *text) == expected


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("hermes", "Just text, with a < and a <tool_call"),
        ("hermes", "<tool_call>\nlook at the fox\n</tool_call>"),
        ("hermes", '<tool_call>{"name": "other", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "look"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "look", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": "look", "arguments": "fox"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "look", "arguments": {"x": NaN}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "look", "arguments": {"x": 1e999}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "look", "arguments": {"x": "\\ud800"}}</tool_call>'),
        ("hermes", '<tool_call>{"name": ["look"], "arguments": {}}</tool_call>'.replace("[", "").replace("]", ",")),
        ("hermes", '  <tool_call>\n{"name": "look", "arguments": {"at": "fo'),
        ("hermes", "<tool_call>"),
        ("hermes", LLAMA),
        ("llama3_json", '{"at": "fox"}'),
        ("llama3_json", '{"name": "look", "parameters": {"at"'),
        ("llama3_json", f"The call is {LLAMA}"),
        ("llama3_json", '<|python_tag|>print("fox")'),
        ("llama3_json", " \n"),
        ("mistral", "[TOOL_CALLS] []"),
        ("mistral", "[TOOL_CALLS] look at this"),
        ("mistral", '[TOOL_CALLS]other{"at": "fox"}'),
        ("mistral", MISTRAL[:-1]),
        ("mistral", MISTRAL.replace("}]", '}, {"name": "look"}]')),
    ],
)
def test_what_is_no_call_is_text_as_it_was(style, text):
    assert parse(style, text) == [text]
    assert parse(style, *text) == [text]


def test_a_call_after_one_that_was_none_is_found():
    assert parse("hermes", f"<tool_call>oh {HERMES}") == ["<tool_call>oh", LOOK]


def test_nesting_without_end_is_text():
    text = "<tool_call>" + '{"name":' * 100_000 + "}" * 100_000
    assert parse("hermes", text) == [text]


def test_no_part_of_a_marker_is_sent_before_it_is_known():
    parser = ToolParser(TOOL_FORMATS["hermes"], NAMES)
    assert parser.push("see <tool") == ["see"]
    assert parser.push("ing") == [" <tooling"]
    assert parser.push(" <tool_call>") == []
    assert parser.push('{"name": "look", "arguments": {}}') == [Call("look", "{}")]


FRAGMENTS = st.sampled_from(
    [HERMES, LLAMA, MISTRAL, "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "{", "}", "[", "]", '"',
     '{"name": "look", "arguments": {"at": "fox"}}', "look{", "[ARGS]", "\\", ";", " ", "\n", "fox", "<", "你", ","]
)  # fmt: skip


@pytest.mark.parametrize("style", TOOL_FORMATS)
@settings(max_examples=300, deadline=None)
@given(fragments=st.lists(FRAGMENTS, max_size=8), data=st.data())
def test_the_result_does_not_depend_on_the_pieces(style: str, fragments: list[str], data: Any) -> None:
    text = "".join(fragments)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=12)))
    pieces = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = parse(style, text)
    assert parse(style, *pieces) == whole
    assert parse(style, *text) == whole
    # Nothing is lost: without calls, the text is the text.
    if not any(isinstance(part, Call) for part in whole):
        assert "".join(part for part in whole if isinstance(part, str)) == text


TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in NAMES]


@pytest.mark.parametrize("style", TOOL_FORMATS)
@pytest.mark.parametrize("names", [NAMES, NAMES[:1]])
def test_a_forced_beginning_leads_to_a_call(style, names):
    form = TOOL_FORMATS[style]
    call = json.dumps({"name": "look", form.arguments: {"at": "fox"}})
    rest = f"[{call}]" if form.array else call
    assert parse(style, forced_beginning(form, names, constrained=True), rest) == [LOOK]
    free = forced_beginning(form, names, constrained=False)
    whole = forced_beginning(form, names, constrained=True) + rest
    assert whole.startswith(free)
    assert parse(style, free, whole.removeprefix(free)) == [LOOK]


def test_the_schema_of_a_forced_call_has_the_functions_parameters():
    call = forced_schema(TOOL_FORMATS["llama3_json"], TOOLS, ["look"])
    assert call["properties"] == {"name": {"const": "look"}, "parameters": {"type": "object"}}
    assert len(forced_schema(TOOL_FORMATS["hermes"], TOOLS, NAMES)["anyOf"]) == 2
    assert forced_schema(TOOL_FORMATS["mistral"], TOOLS, NAMES)["maxItems"] == 1
