"""What a template writes around texts is found by probing and proved by rebuilding."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunerun.chat.conversations import random_conversations
from tunerun.chat.faults import ChatFault
from tunerun.chat.frame import PROOF_CONVERSATIONS, probe_frame
from tunerun.chat.template import SHIPPED, ChatTemplate, shipped_names

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
TURNS = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}[/]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def template(text: str) -> ChatTemplate:
    return ChatTemplate(text=text, tool_text=None, variables=VARIABLES, source="test")


def shipped(name: str) -> ChatTemplate:
    return template((SHIPPED / f"{name}.jinja").read_text(encoding="utf-8"))


def test_the_conversations_of_the_proof_are_of_every_kind() -> None:
    conversations = random_conversations(PROOF_CONVERSATIONS)
    assert len(conversations) >= 50
    assert conversations == random_conversations(PROOF_CONVERSATIONS)
    first = [messages[0] for messages in conversations]
    assert {"system", "user"} == {message["role"] for message in first}
    assert any(message["role"] == "system" and message["content"] == "" for message in first)
    assert max(map(len, conversations)) > 5
    text = "".join(message["content"] for messages in conversations for message in messages)
    assert all(part in text for part in ("你好", "🙂", "{{", '"""', "\n"))
    assert all(messages[-1]["role"] == "user" for messages in conversations)


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_template_is_a_frame(name: str) -> None:
    frame = probe_frame(shipped(name))
    for messages in random_conversations(20, seed=7):
        assert frame.render(messages) == shipped(name).render(messages, generation_prompt=True)


def test_the_parts_of_a_frame_are_what_stands_between_the_texts() -> None:
    frame = probe_frame(template("<s>" + TURNS))
    assert frame.opening == "<s>[user]"
    assert (frame.answer, frame.following, frame.prompt) == ("[/][assistant]", "[/][user]", "[/][assistant]")
    assert frame.system is not None
    assert (frame.system.place, frame.system.before, frame.system.after) == ("first", "<s>[system]", "[/][user]")
    assert frame.system.empty == "<s>[system][/][user]"
    assert frame.keeps_spaces
    assert frame.keeps_reasoning


def test_a_default_system_prompt_is_part_of_the_opening() -> None:
    default = "{% if messages[0].role != 'system' %}[system]Be kind.[/]{% endif %}"
    assert probe_frame(template(default + TURNS)).opening == "[system]Be kind.[/][user]"


def test_what_happens_to_white_space_and_reasoning_is_noticed() -> None:
    trimmed = probe_frame(template(TURNS.replace("m.content", "m.content.strip()")))
    assert not trimmed.keeps_spaces
    without = probe_frame(template(TURNS.replace("m.content", "m.content.split('</think>')[-1]")))
    assert not without.keeps_reasoning


def test_a_refused_system_prompt_is_no_part_of_the_frame() -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    assert probe_frame(template(refusing + TURNS)).system is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ raise_exception('never') }}", "refuses the conversation: never"),
        (TURNS.replace("{{ m.content }}", "{{ m.content if not loop.first }}"), "leaves out or repeats a text"),
        (TURNS.replace("in messages", "in messages[::-1]"), "another order"),
        (TURNS.replace("[/]", "[/{{ loop.index }}]"), "does not always write the same"),
        (TURNS.replace("m.content", "m.content.upper()"), "leaves out or repeats a text"),
        (TURNS.replace("m.content", "m.content.replace('42', '43')"), "does not write these texts as others"),
        ("{{ messages|length if messages[0].role == 'system' }}" + TURNS, "before the system prompt"),
    ],
)
def test_what_is_no_frame_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ChatFault, match=r"not-expressible|template-refuses") as caught:
        probe_frame(template(text))
    assert reason in caught.value.detail


def test_the_start_token_is_taken_off_for_engines_that_write_it() -> None:
    frame = probe_frame(template("{{ bos_token }}" + TURNS)).without_start("<s>")
    assert frame.opening == "[user]"
    assert frame.system is not None
    assert frame.system.before == "[system]"
    with pytest.raises(ChatFault, match="begins every prompt with '<s>'"):
        frame.without_start("<s>")


PUBLIC = {
    "HuggingFaceTB-SmolLM3-3B": "first",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "'NoneType' object is not iterable",
    "Qwen-Qwen2.5-7B-Instruct": "first",
    "Qwen-Qwen3-0.6B": "first",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "first",
    "google-gemma-2-2b-it": "no system",
    "meta-llama-Llama-3.2-3B-Instruct": "first",
    "microsoft-Phi-3.5-mini-instruct": "first",
    "mistralai-Mistral-Nemo-Instruct-2407": "last",
    "openbmb-MiniCPM5-1B": "first",
}


@pytest.mark.shared
@pytest.mark.parametrize("name", PUBLIC)
def test_public_templates_are_frames_or_refused_for_a_reason(shared_dir: Path, name: str) -> None:
    public = template((shared_dir / "templates" / f"{name}.jinja").read_text(encoding="utf-8"))
    try:
        frame = probe_frame(public)
    except ChatFault as fault:
        assert PUBLIC[name] in fault.detail
    else:
        assert PUBLIC[name] == ("no system" if frame.system is None else frame.system.place)
