"""LMDeploy's fields render what the chat template renders, or there are none."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.chat.test_frame import TURNS, shipped, template
from tunerun.chat.conversations import random_conversations
from tunerun.chat.faults import ChatFault
from tunerun.chat.frame import probe_frame
from tunerun.chat.lmdeploy import LmdeployTemplate, from_frame, from_json
from tunerun.chat.template import ChatTemplate

MARKS = re.compile(r"<\|im_start\|>|<\|im_end\|>|<s>|</s>")
DEFAULT = "{% if messages[0].role != 'system' %}[system]Be kind.[/]{% endif %}"


def of(jinja: ChatTemplate, system: str | None = None) -> LmdeployTemplate:
    return from_frame(probe_frame(jinja), "mine", stops=("<|im_end|>",), marks=MARKS, system=system)


def test_chatml_with_a_system_prompt_is_cut_as_lmdeploy_cuts_it() -> None:
    found = of(shipped("chatml"), system="Be kind.")
    assert found.to_json() == {
        "model_name": "mine",
        "system": "<|im_start|>system\n",
        "meta_instruction": "Be kind.",
        "eosys": "<|im_end|>\n",
        "user": "<|im_start|>user\n",
        "eoh": "<|im_end|>\n",
        "assistant": "<|im_start|>assistant\n",
        "eoa": "<|im_end|>",
        "separator": "\n",
        "stop_words": ["<|im_end|>"],
        "capability": "chat",
    }
    assert from_json(json.loads(json.dumps(found.to_json()))) == found
    for messages in random_conversations(60, seed=2):
        told = messages
        if messages[0]["role"] != "system":
            told = [{"role": "system", "content": "Be kind."}, *messages]
        assert found.render(messages) == shipped("chatml").render(told, generation_prompt=True)


def test_the_templates_own_default_prompt_becomes_the_meta_instruction() -> None:
    found = of(template(DEFAULT + TURNS))
    assert found.meta_instruction == "Be kind."
    for messages in random_conversations(60, seed=2):
        assert found.render(messages) == template(DEFAULT + TURNS).render(messages, generation_prompt=True)


def test_a_conversation_that_ends_with_an_answer_leaves_it_open() -> None:
    found = of(shipped("chatml"), system="x")
    messages = [{"role": role, "content": role[0]} for role in ("system", "user", "assistant")]
    assert found.render(messages).endswith("<|im_start|>assistant\na")


@pytest.mark.parametrize(
    ("jinja", "reason"),
    [
        (shipped("chatml"), "Set a default one by export.system"),
        (template(TURNS.replace("%}[assistant]{%", "%}[assistant]<think>{%")), "generation prompt is not how"),
        (
            template("{% set messages = messages | rejectattr('content', 'equalto', '') %}" + TURNS),
            "leave out an empty",
        ),
        (
            template("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + TURNS),
            "takes no system prompt",
        ),
    ],
)
def test_what_lmdeploy_has_no_fields_for_is_refused_with_the_reason(jinja: ChatTemplate, reason: str) -> None:
    with pytest.raises(ChatFault, match=reason):
        of(jinja)


@pytest.mark.shared
def test_public_templates_with_a_default_prompt_are_written(shared_dir: Path) -> None:
    for name in ("Qwen-Qwen2.5-7B-Instruct", "meta-llama-Llama-3.2-3B-Instruct"):
        jinja = template((shared_dir / "templates" / f"{name}.jinja").read_text(encoding="utf-8"))
        found = of(jinja)
        for messages in random_conversations(60, seed=2):
            assert found.render(messages) == jinja.render(messages, generation_prompt=True)
