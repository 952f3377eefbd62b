"""Questions as a model sees them when served: through the chat template, or as plain text to go on from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunerun.chat.template import ChatTemplate
from tunerun.chat.tokenizer import Tokenizer


def encode_text(tokenizer: Tokenizer, text: str, *, special: bool) -> list[int]:
    """Returns the token ids of a text.

    Args:
        tokenizer: Of the model.
        text: Special tokens written out in it become those tokens.
        special: Whether the tokenizer adds what it puts around a text, such as a first token.
    """
    ids: list[int] = tokenizer.backend.encode(text, add_special_tokens=special).ids
    return ids


def encode_prompt(tokenizer: Tokenizer, template: ChatTemplate | None, prompt: str) -> list[int]:
    """Returns the token ids that a model answers.

    Args:
        tokenizer: Of the model.
        template: Chat template; None continues the prompt as plain text.
        prompt: A user's question.
    """
    if template is None:
        return encode_text(tokenizer, prompt, special=True)
    messages: Sequence[Any] = [{"role": "user", "content": prompt}]
    return encode_text(tokenizer, template.render(messages, generation_prompt=True), special=False)
