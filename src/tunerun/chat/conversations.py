"""Conversations to try renderings on: the same ones each time."""

from __future__ import annotations

import random
from typing import Any

_TEXTS = (
    "Who are you?",
    "I am a small model.",
    "你好，世界！请介绍一下自己。",
    "我是一个小模型，很高兴认识你。",
    "Emoji: 🙂👍🏽👩‍💻🇩🇪 and naïve café, Ω ≈ 3.14",
    'JSON: {"a": [1, 2], "b": "c\\n"} and {{ braces }} and {% blocks %}',
    "def f(x):\n    return x  # a comment\n\nprint(f('a'))",
    'quotes "double", \'single\', """triple""" and `ticks`',
    "one  two   three\tfour",
    "１２３ 　全角、「引用」——破折号",
    "$HOME %d \\n \\\\ <b>bold</b> &amp; [link](x)",
    "42",
)
_JOINTS = (" ", "\n", "\n\n", ", ")
_MOST_EXCHANGES = 4


def random_conversations(count: int, seed: int = 0) -> list[list[dict[str, Any]]]:
    """Makes conversations that end with a question: with a system prompt, without one, and with an empty one.

    No text begins or ends with white space or holds reasoning: templates treat these in ways of their own.

    Args:
        count: How many.
        seed: Others for another one.
    """
    generator = random.Random(seed)
    return [_conversation(generator, index) for index in range(count)]


def _conversation(generator: random.Random, index: int) -> list[dict[str, Any]]:
    system = (None, _text(generator), "")[index % 3]
    messages = [] if system is None else [{"role": "system", "content": system}]
    roles = ["user", *("assistant", "user") * generator.randrange(_MOST_EXCHANGES)]
    return messages + [{"role": role, "content": _text(generator)} for role in roles]


def _text(generator: random.Random) -> str:
    parts = [generator.choice(_TEXTS) for _ in range(generator.randint(1, 3))]
    return generator.choice(_JOINTS).join(parts)
