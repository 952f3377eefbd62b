"""The texts that gates compare models on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunerun.chat.conversations import random_conversations
from tunerun.chat.faults import ChatFault
from tunerun.chat.template import ChatTemplate
from tunerun.chat.tokenizer import Tokenizer
from tunerun.formats.tokens import TokenStore
from tunerun.plan.steps import VERIFY_PROBES, VERIFY_TOKENS

_PROMPTS = VERIFY_PROBES // 2
_RANDOM = 48

_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
_QUESTION = {"role": "user", "content": "Who are you?"}
_ASKED = {"role": "user", "content": "How is the weather in 北京?"}
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "北京"}}}
    ],
}
_RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "name": "weather", "content": '{"degrees": 21}'}
_PLAIN_TEXTS = ("Who are you?", "  two  spaces,\ttabs\n\nand lines ", "你好，世界！ naïve 123456 🙂")


def conversations(prompts: Sequence[str]) -> list[tuple[list[dict[str, Any]], list[Any] | None]]:
    """Returns messages and tools: the prompts alone, then fixed conversations, some with tools, then random ones."""
    alone = [([{"role": "user", "content": prompt}], None) for prompt in prompts[:_PROMPTS]]
    answer = {"role": "assistant", "content": "A small model."}
    fixed: list[tuple[list[dict[str, Any]], list[Any] | None]] = [
        ([{"role": "system", "content": "Be brief."}, _QUESTION], None),
        ([_QUESTION, answer, {"role": "user", "content": "And what can you do?"}], None),
        *[([{"role": "user", "content": text}], None) for text in _PLAIN_TEXTS[1:]],
        ([_QUESTION], [_TOOL]),
        ([{"role": "system", "content": ""}, _QUESTION], [_TOOL]),
        ([_ASKED, _CALL, _RESULT], [_TOOL]),
        ([_ASKED, _CALL, _RESULT, answer, _QUESTION], [_TOOL]),
    ]
    return [*alone, *fixed, *((messages, None) for messages in random_conversations(_RANDOM))]


def renderings(template: ChatTemplate, prompts: Sequence[str]) -> list[str | None]:
    """Renders every conversation, with and without an open assistant turn; None where the template refuses."""
    found: list[str | None] = []
    for messages, tools in conversations(prompts):
        for generation_prompt in (True, False):
            try:
                found.append(template.render(messages, tools, generation_prompt=generation_prompt))
            except ChatFault:
                found.append(None)
    return found


def texts(template: ChatTemplate | None, prompts: Sequence[str]) -> list[str | None]:
    """Returns what is compared: renderings of a chat model, plain texts of another."""
    return [*prompts[:_PROMPTS], *_PLAIN_TEXTS] if template is None else renderings(template, prompts)


def token_rows(tokenizer: Tokenizer, template: ChatTemplate | None, prompts: Sequence[str]) -> list[list[int]]:
    """Returns token ids for comparing logits: the probes, each cut to 256 tokens."""
    return _rows(tokenizer, template, texts(template, prompts), VERIFY_PROBES)


def prompt_rows(
    tokenizer: Tokenizer, template: ChatTemplate | None, prompts: Sequence[str], count: int
) -> list[list[int]]:
    """Returns token ids of texts to go on from: questions with an open turn, or plain texts, each cut to 256 tokens."""
    known = texts(template, prompts)
    return _rows(tokenizer, template, known if template is None else known[::2], count)


def _rows(
    tokenizer: Tokenizer, template: ChatTemplate | None, known: Sequence[str | None], count: int
) -> list[list[int]]:
    # A template writes the tokens that stand around a text itself.
    rows = [tokenizer.encode(text, add_special_tokens=template is None) for text in known if text is not None]
    return [row[:VERIFY_TOKENS] for row in rows if row][:count]


def store_rows(store: TokenStore, count: int) -> list[list[int]]:
    """Returns the first sample of the first rows of a store, each cut to 256 tokens."""
    rows = []
    for index in range(min(count, len(store))):
        tokens, _, segments = store.row(index)
        rows.append(tokens[segments == segments[0]][:VERIFY_TOKENS].tolist())
    return [row for row in rows if row]
