from __future__ import annotations

import random
import re
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunerun.chat.faults import ChatFault
from tunerun.chat.mask import Renderer
from tunerun.chat.template import ChatTemplate, load_template
from tunerun.chat.tokenizer import load_tokenizer

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
ENDS = ("<|im_end|>", "<|eot_id|>", "</s>", "<end_of_turn>", "<|end|>", "<｜end▁of▁sentence｜>")
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Which"}}},
    },
}


@pytest.fixture(scope="module")
def tokenizer(chat_folder):
    return replace(load_tokenizer(chat_folder), special=re.compile("|".join(map(re.escape, ENDS))))


def renderer(tokenizer, text="chatml", **options) -> Renderer:
    if text == "chatml":
        template = load_template(None, TOKENS, "chatml")
    else:
        template = ChatTemplate(text=text, tool_text=None, variables=TOKENS, source="test")
    return Renderer(template, tokenizer, **options)


def chat(*texts: str, system: str | None = None) -> list[dict]:
    roles = ("user", "assistant") * len(texts)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return [{"role": "system", "content": system}, *messages] if system else messages


def call(**arguments) -> dict:
    function = {"name": "get_weather", "arguments": arguments}
    calls = [{"type": "function", "id": "call00000", "function": function}]
    return {"role": "assistant", "content": "", "tool_calls": calls}


RESULT = {"role": "tool", "content": "22", "tool_call_id": "call00000"}
TOOL_CHAT = [{"role": "user", "content": "Warm?"}, call(city='Par"is', days=3), RESULT, *chat("", "It is 22.")[1:]]


def trained(rows) -> list[list[str]]:
    return [[row.text[start:end] for start, end in row.trained] for row in rows]


JSON_CALL = '{"name": "get_weather", "arguments": {"city": "Par\\"is", "days": 3}}'
XML_ARGUMENTS = '<param name="city">Par"is</param><param name="days">3</param>'
THINK = "<think>\nhm\n</think>\n\nYes"
EMPTY = "<think>\n\n</think>\n\n"


def end(token: str, *texts: str) -> list[str]:
    return [text + token for text in texts]


# Template, conversation, multi_turn -> what is trained in each row, or the reason it is refused for.
VERDICTS = [
    ("HuggingFaceTB-SmolLM3-3B", chat("a", "b", "c", "d"), "whole", [end("<|im_end|>", "b", "d")]),
    ("HuggingFaceTB-SmolLM3-3B", TOOL_CHAT, "whole", "template-drops-text"),
    ("NousResearch-Hermes-3-Llama-3.1-8B-tool_use", chat("a", "b"), "whole", "template-refuses"),
    ("Qwen-Qwen2.5-7B-Instruct", chat("a", "b", "c", "d", system="s"), "whole", [end("<|im_end|>", "b", "d")]),
    ("Qwen-Qwen2.5-7B-Instruct", chat("a", THINK, "c", "d"), "whole", [end("<|im_end|>", THINK, "d")]),
    ("Qwen-Qwen3-0.6B", chat("a", "b"), "whole", [end("<|im_end|>", EMPTY + "b")]),
    ("Qwen-Qwen3-0.6B", chat("a", THINK), "whole", [end("<|im_end|>", THINK)]),
    ("Qwen-Qwen3-0.6B", chat("a", "b", "c", "d"), "whole", "history-differs"),
    (
        "Qwen-Qwen3-0.6B",
        chat("a", THINK, "c", "d"),
        "split",
        [end("<|im_end|>", THINK), end("<|im_end|>", EMPTY + "d")],
    ),
    ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", chat("a", "b", system="s"), "whole", [end(ENDS[5], "b")]),
    ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", chat("a", "b", "c", "d"), "whole", "history-differs"),
    (
        "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
        chat("a", "b", "c", "d"),
        "split",
        [end(ENDS[5], "b"), end(ENDS[5], "d")],
    ),
    ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", chat("a", THINK), "whole", "template-drops-text"),
    ("google-gemma-2-2b-it", chat("a", " b\n", "c", "d"), "whole", [end("<end_of_turn>", "b", "d")]),
    ("google-gemma-2-2b-it", chat("a", "b", system="s"), "whole", "template-refuses"),
    ("meta-llama-Llama-3.2-3B-Instruct", chat("a", "b ", "c", "d", system="s"), "whole", [end("<|eot_id|>", "b", "d")]),
    ("microsoft-Phi-3.5-mini-instruct", chat("a", "b", "c", "d"), "whole", [end("<|end|>", "b", "d")]),
    ("microsoft-Phi-3.5-mini-instruct", TOOL_CHAT, "whole", "template-drops-text"),
    ("mistralai-Mistral-Nemo-Instruct-2407", chat("a", "b", "c", "d"), "whole", [end("</s>", "b", "d")]),
    ("mistralai-Mistral-Nemo-Instruct-2407", chat("a", "b", system="s"), "whole", [end("</s>", "b")]),
    ("openbmb-MiniCPM5-1B", chat("a", "b", "c", "d"), "whole", [end("<|im_end|>", "b", "d")]),
    ("openbmb-MiniCPM5-1B", chat("a", THINK, "c", "d"), "whole", "history-differs"),
]


@pytest.mark.shared
@pytest.mark.parametrize(("name", "messages", "multi_turn", "expected"), VERDICTS)
def test_public_templates_train_or_are_refused_for_the_right_reason(
    shared_dir, tokenizer, name, messages, multi_turn, expected
):
    text = (shared_dir / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    made = renderer(tokenizer, text, multi_turn=multi_turn)
    tools = [TOOL] if messages is TOOL_CHAT else None
    if isinstance(expected, str):
        with pytest.raises(ChatFault) as caught:
            made.rows(messages, tools)
        assert caught.value.reason == expected
    else:
        rows = made.rows(messages, tools)
        assert trained(rows) == expected
        for row in rows:
            turn = len(messages) if row is rows[-1] else 2
            assert row.text.startswith(made.template.render(messages[: turn - 1], tools, generation_prompt=True))


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "Qwen-Qwen2.5-7B-Instruct",
            f"<tool_call>\n{JSON_CALL}\n</tool_call><|im_end|>",
        ),
        (
            "meta-llama-Llama-3.2-3B-Instruct",
            '{"name": "get_weather", "parameters": {"city": "Par\\"is", "days": 3}}<|eot_id|>',
        ),
        (
            "mistralai-Mistral-Nemo-Instruct-2407",
            f'[TOOL_CALLS][{JSON_CALL[:-1]}, "id": "call00000"}}]</s>',
        ),
        (
            "openbmb-MiniCPM5-1B",
            f'<function name="get_weather">{XML_ARGUMENTS}</function><|im_end|>',
        ),
    ],
)
def test_tool_calls_are_trained_as_the_template_writes_them(shared_dir, tokenizer, name, expected):
    text = (shared_dir / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    (spans,) = trained(renderer(tokenizer, text).rows(TOOL_CHAT, [TOOL]))
    assert spans[0] == expected
    assert spans[1].startswith("It is 22.")


def with_markers(text: str) -> str:
    """Puts generation markers into the shipped ChatML template, by hand: the independent oracle."""
    opening = "{{- '<|im_start|>assistant\\n' + message.content }}"
    assert opening in text
    text = text.replace(opening, "{{- '<|im_start|>assistant\\n' }}{% generation %}{{- message.content }}")
    closing = "{{- '<|im_end|>\\n' }}\n    {%- elif message.role == 'tool' %}"
    assert closing in text
    return text.replace(
        closing, "{{- '<|im_end|>' }}{% endgeneration %}{{- '\\n' }}\n    {%- elif message.role == 'tool' %}"
    )


def test_masks_equal_those_of_generation_markers(tokenizer):
    plain = renderer(tokenizer)
    marked = renderer(tokenizer, with_markers(plain.template.text))
    assert marked.template.has_markers
    source = random.Random(1)
    texts = ("yes", " no \n", "\n\nlines", "assistant\n", "<|im_end|>", "user\nyes", THINK, '{"a": 1}')
    for _ in range(200):
        messages = chat(*(source.choice(texts) for _ in range(2 * source.randint(1, 3))))
        if source.random() < 0.4:
            asked = call(city=source.choice(texts), n=[1, {"deep": source.choice(texts)}])
            messages = [*messages[:-1], asked, RESULT, messages[-1]]
        for options in ({}, {"train_on": "last"}, {"multi_turn": "split"}):
            ours = replace(plain, **options).rows(messages, [TOOL])
            theirs = replace(marked, **options).rows(messages, [TOOL])
            assert [(row.text, row.trained) for row in ours] == [(row.text, row.trained) for row in theirs]


@given(
    st.lists(st.text(min_size=1).filter(str.strip), min_size=2, max_size=6).filter(lambda texts: len(texts) % 2 == 0)
)
def test_whatever_the_texts_the_answers_and_their_ends_are_trained(chat_folder, texts):
    made = renderer(load_tokenizer(chat_folder))
    (row,) = made.rows(chat(*texts), None)
    assert row.text == made.template.render(chat(*texts))
    assert trained([row]) == [end("<|im_end|>", *texts[1::2])]


def test_an_answer_that_repeats_the_prompt_is_found_at_its_own_place(tokenizer):
    (row,) = renderer(tokenizer).rows(chat("same", "same", "same", "same"), None)
    assert row.text[: row.trained[0][0]].count("same") == 1
    assert row.text[: row.trained[1][0]].count("same") == 3


def test_text_that_looks_like_a_sentinel_does_no_harm(tokenizer):
    texts = ("zqx0jv0000x", "zqx0jv0000x zqx1jv")
    assert trained(renderer(tokenizer).rows(chat(*texts), None)) == [[texts[1] + "<|im_end|>"]]


def test_train_on_last_and_all(tokenizer):
    messages = chat("a", "b", "c", "d")
    assert trained(renderer(tokenizer, train_on="last").rows(messages, None)) == [["d<|im_end|>"]]
    (row,) = renderer(tokenizer, train_on="all").rows(messages, None)
    assert row.trained == ((0, len(row.text)),)


def test_messages_of_no_weight_are_context(tokenizer):
    messages = chat("a", "b", "c", "d")
    assert trained(renderer(tokenizer).rows(messages, None, frozenset({1}))) == [["d<|im_end|>"]]
    assert trained(renderer(tokenizer, multi_turn="split").rows(messages, None, frozenset({1}))) == [["d<|im_end|>"]]
    assert trained(renderer(tokenizer).rows(messages, None, frozenset({1, 3}))) == [[]]


SIMPLE = "{% for m in messages %}<{{ m.role }}>BODY{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("{{ m.content }}</s>", None),
        ("{{ m.content | trim }}</s>", None),
        ("{{ m.content | upper }}</s>", "template-drops-text"),
        ("{{ m.content }}{{ m.content }}</s>", "template-drops-text"),
        ("{{ m.content[:3] }}</s>", "template-drops-text"),
        ("{{ m.content }}{{ m.content | length }}</s>", "template-changes-text"),
        ("{{ m.content | replace('answer', 'reply') }}</s>", "template-changes-text"),
        ("{{ m.content }} END\n", "no-end-of-turn"),
        ("{{ '!' if loop.last and m.role == 'assistant' }}{{ m.content }}</s>", "history-differs"),
    ],
)
def test_what_templates_do_to_the_answer(tokenizer, body, reason):
    made = renderer(tokenizer, SIMPLE.replace("BODY", body))
    messages = chat("question", "an answer here ", "more", "the answer")
    if reason is None:
        assert len(made.rows(messages, None)[0].trained) == 2
        return
    with pytest.raises(ChatFault) as caught:
        made.rows(messages, None)
    assert caught.value.reason == reason


def test_a_generation_prompt_unlike_the_turn_is_refused(tokenizer):
    text = SIMPLE.replace("BODY", "{{ m.content }}</s>").replace("%}<assistant>{", "%}<bot>{")
    with pytest.raises(ChatFault) as caught:
        renderer(tokenizer, text).rows(chat("a", "b"), None)
    assert caught.value.reason == "prompt-differs"


def test_tools_that_the_template_does_not_show_are_a_fault(tokenizer):
    with pytest.raises(ChatFault) as caught:
        renderer(tokenizer, SIMPLE.replace("BODY", "{{ m.content }}</s>")).rows(chat("a", "b"), [TOOL])
    assert caught.value.reason == "template-drops-tools"


def test_markers_without_the_end_of_turn_are_refused(tokenizer):
    text = SIMPLE.replace("BODY", "{% generation %}{{ m.content }}{% endgeneration %}</s>")
    with pytest.raises(ChatFault) as caught:
        renderer(tokenizer, text.replace("for m in messages", "for m in messages[1:]")).rows(chat("a", "b"), None)
    assert caught.value.reason == "no-end-of-turn"


def test_an_unflagged_end_of_turn_token_is_found(chat_folder):
    loaded = load_tokenizer(chat_folder)
    unflagged = replace(loaded, special=re.compile("<never>"))
    assert trained(renderer(unflagged).rows(chat("a", "b"), None)) == [["b<|im_end|>"]]


MARKED_BODY = (
    "{% if m.role == 'assistant' %}<assistant>{% generation %}{{ m.content }}</s>{% endgeneration %}"
    "{% else %}<{{ m.role }}>{{ m.content }}</s>{% endif %}"
)
BODIES = (
    "<{{ m.role }}>{{ m.content }}</s>",
    "<{{ m.role }}>{{ m.content | trim }}</s>",
    "<{{ m.role }}>{{ m.content }}{{ '?' if 'b' in m.content }}</s>",
    MARKED_BODY,
)
CODA = "{% endfor %}{% if add_generation_prompt %}<assistant>{{ extra }}{% endif %}"


@given(
    st.sampled_from(BODIES),
    st.sampled_from(["", "{{ '<think>' }}"]),
    st.lists(
        st.sampled_from(["a", "ab", " a ", "\n\n", "zqx0001jv", "<assistant>", THINK, "x\n"]), min_size=2, max_size=6
    ),
    st.sampled_from([{}, {"train_on": "last"}, {"multi_turn": "split"}]),
)
def test_what_follows_from_a_shape_is_what_is_proved_for_the_conversation(chat_folder, body, extra, texts, options):
    text = "{% for m in messages %}" + body + CODA.replace("{{ extra }}", extra)
    loaded = replace(load_tokenizer(chat_folder), special=re.compile("</s>"))
    made = renderer(loaded, text, **options)
    messages = chat(*texts[: len(texts) // 2 * 2])
    warm = chat(*("w" for _ in messages))
    turns = list(range(1, len(messages), 2))
    turns = turns[-1:] if options == {"train_on": "last"} else turns
    try:
        if options == {"multi_turn": "split"}:
            proved = [made._proved(messages[: index + 1], None, (index,)) for index in turns]
        else:
            proved = [made._proved(messages, None, tuple(turns))]
    except ChatFault as fault:
        with pytest.raises(ChatFault, match=fault.reason):
            made.rows(messages, None)
        return
    with suppress(ChatFault):
        made.rows(warm, None)
    assert made.rows(messages, None) == proved


def test_a_shape_is_proved_once_and_each_conversation_rendered_once(tokenizer, monkeypatch):
    calls = []
    render = ChatTemplate.render
    monkeypatch.setattr(ChatTemplate, "render", lambda *args, **options: calls.append(1) or render(*args, **options))
    made = renderer(tokenizer)
    made.rows(chat("a", "b", "c", "d"), None)
    calls.clear()
    (row,) = made.rows(chat("one", "two", "three", "four"), None)
    assert trained([row]) == [end("<|im_end|>", "two", "four")]
    assert len(calls) == 1
