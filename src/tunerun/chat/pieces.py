"""Puts sentinels in the place of an assistant message's texts, and finds those texts in a rendering.

The proof behind every mask: render once as it is and once with each text replaced by a unique sentinel. The second
rendering says what the template itself writes; putting the texts back in the place of the sentinels must rebuild the
first rendering exactly. Where it does not, nothing is guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunerun.chat.faults import ChatFault
from tunerun.chat.template import Message, Span

# A reasoning block at the start of an answer; templates look for it and move or drop it.
_REASONING = re.compile(r"(\s*<think>\s*|\s*)(.*?)(\s*</think>\s*)(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Piece:
    """One text of an assistant message and how a template may write it."""

    sentinel: str
    forms: tuple[str, ...]
    """The text as given, trimmed in the ways templates trim, or escaped as JSON."""
    what: str
    """Name of the text for messages."""


def substitute(message: Message, nonce: str) -> tuple[dict[str, Any], list[Piece]]:
    """Replaces the texts of an assistant message by sentinels.

    Args:
        message: With `content`, and possibly `reasoning_content` and `tool_calls` (arguments as an object).
        nonce: Letters that occur nowhere in the conversation.

    Returns:
        The message with sentinels, and the pieces in the order they were replaced.
    """
    pieces: list[Piece] = []

    def put(text: str, what: str, forms: tuple[str, ...]) -> str:
        if not text.strip():
            return text
        sentinel = f"{nonce}{len(pieces):04d}x"
        pieces.append(Piece(sentinel, tuple(dict.fromkeys(forms)), what))
        return sentinel

    changed = dict(message)
    if "reasoning_content" in message:
        text = message["reasoning_content"]
        changed["reasoning_content"] = put(text, "the reasoning", _trimmed(text))
    content = message["content"]
    block = _REASONING.fullmatch(content) if "</think>" in content else None
    if block is None:
        changed["content"] = put(content, "the answer", _trimmed(content))
    else:
        opening, reasoning, closing, answer = block.groups()
        reasoning = put(reasoning, "the reasoning (<think>)", _trimmed(reasoning))
        changed["content"] = opening + reasoning + closing + put(answer, "the answer", _trimmed(answer))
    if "tool_calls" in message:
        changed["tool_calls"] = [_call(call, put) for call in message["tool_calls"]]
    return changed, pieces


def locate(rendering: str, with_sentinels: str, pieces: Sequence[Piece]) -> list[Span]:
    """Finds each piece in a rendering and proves it by rebuilding the rendering from the template's own text.

    Args:
        rendering: Of the conversation as it is.
        with_sentinels: Of the same conversation with sentinels.
        pieces: What was replaced.

    Returns:
        Character spans (start, end) in order of position.

    Raises:
        ChatFault: A text is left out, repeated or changed by the template.
    """
    for piece in pieces:
        count = with_sentinels.count(piece.sentinel)
        if count != 1:
            verb = "leaves out" if count == 0 else f"writes {count} times"
            raise ChatFault("template-drops-text", f"the chat template {verb} {piece.what} of an assistant turn.")
    ordered = sorted(pieces, key=lambda piece: with_sentinels.index(piece.sentinel))
    spans: list[Span] = []
    position, rest = 0, with_sentinels
    for number, piece in enumerate(ordered):
        fixed, _, rest = rest.partition(piece.sentinel)
        _expect(rendering.startswith(fixed, position), piece)
        start = position + len(fixed)
        following = rest.partition(ordered[number + 1].sentinel)[0] if number + 1 < len(ordered) else rest
        ends = [
            start + len(form)
            for form in piece.forms
            if rendering.startswith(form, start) and rendering.startswith(following, start + len(form))
        ]
        _expect(bool(ends), piece)
        spans.append((start, ends[0]))
        position = ends[0]
    if rendering[position:] != rest:
        raise ChatFault(
            "template-changes-text", "the chat template writes something else after the answer than for others."
        )
    return spans


def _expect(proved: bool, piece: Piece) -> None:
    if not proved:
        detail = f"the chat template changes {piece.what} of an assistant turn; its trained text cannot be shown."
        raise ChatFault("template-changes-text", detail)


def _call(call: Any, put: Any) -> dict[str, Any]:
    function = call["function"]
    name = put(function["name"], "the name of a tool call", _escaped(function["name"]))
    arguments = _leaves(function["arguments"], put)
    return {**call, "function": {**function, "name": name, "arguments": arguments}}


def _leaves(value: Any, put: Any) -> Any:
    if isinstance(value, dict):
        return {key: _leaves(item, put) for key, item in value.items()}
    if isinstance(value, list):
        return [_leaves(item, put) for item in value]
    return put(value, "an argument of a tool call", _escaped(value)) if isinstance(value, str) else value


def _trimmed(text: str) -> tuple[str, ...]:
    return (text, text.lstrip("\n"), text.rstrip("\n"), text.strip("\n"), text.lstrip(), text.rstrip(), text.strip())


def _escaped(text: str) -> tuple[str, ...]:
    return (json.dumps(text, ensure_ascii=False)[1:-1], text, json.dumps(text)[1:-1])
