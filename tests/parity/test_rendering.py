from __future__ import annotations

import random
from datetime import datetime

import jinja2
import pytest

from tests.parity.chat_models import TEMPLATES, TEXTS, TOOL, TRAPS, conversation, template_of, theirs, write_model
from tunerun.chat.faults import ChatFault
from tunerun.chat.template import load_template
from tunerun.chat.tokenizer import load_tokenizer

pytest.importorskip("transformers", reason="rendering is compared with transformers, which is not installed")

CALLS = frozenset(TEMPLATES) - {
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
    "google-gemma-2-2b-it",
    "HuggingFaceTB-SmolLM3-3B",
    "microsoft-Phi-3.5-mini-instruct",
}
"""Templates that write tool calls given as objects."""


@pytest.mark.shared
@pytest.mark.parametrize("name", TEMPLATES)
def test_rendering_equals_that_of_transformers(shared_dir, chat_folder, tmp_path, name):
    folder = write_model(tmp_path, chat_folder / "tokenizer.json", template_of(shared_dir, name))
    ours = load_template(folder, load_tokenizer(folder).named, date=datetime.now())  # noqa: DTZ005 (as transformers)
    other = theirs(folder)
    source, same, refused, with_calls = random.Random(name), 0, 0, 0
    for number in range(300):
        calls = 0.5 if number % 3 == 0 else 0.0
        messages = conversation(source, TEXTS + TRAPS, system=0.4, calls=calls)
        # Conversations stop anywhere, and go on with the model's turn or not.
        messages = messages[: source.randint(1, len(messages))]
        tools = [TOOL] if number % 2 else None
        prompt = source.random() < 0.5
        try:
            expected = other.apply_chat_template(messages, tools=tools, add_generation_prompt=prompt, tokenize=False)
        except (jinja2.TemplateError, TypeError, AttributeError):
            with pytest.raises(ChatFault):
                ours.render(messages, tools, generation_prompt=prompt)
            refused += 1
            continue
        assert ours.render(messages, tools, generation_prompt=prompt) == expected
        same += 1
        with_calls += any("tool_calls" in message for message in messages)
    assert same >= 30, (same, refused)
    assert with_calls >= 5 or name not in CALLS, (same, with_calls)
