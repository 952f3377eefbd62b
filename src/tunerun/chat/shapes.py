"""Conversations of one shape differ only in their texts; what was proved for the shape holds where a rebuild shows it.

A shape is the roles of a conversation and which turns are trained. It is proved once, with a sentinel for every text.
A real conversation of the shape is then rendered once: if putting its texts in the place of the sentinels rebuilds that
rendering exactly, the template treats these texts as it treats any, and the trained spans follow by counting. If not
(a text is trimmed, or looks like reasoning), the conversation is proved on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from tunerun.chat.sentinels import SENTINEL, sentinel
from tunerun.chat.template import Message, Span

# Where a span starts or ends: characters of the template before it, and texts before it.
_Edge = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Shape:
    """What was proved for all conversations of one shape."""

    fixed: tuple[str, ...]
    """What the template writes around the texts; one more than there are texts."""
    order: tuple[int, ...]
    """Index of the message whose text follows each part."""
    edges: tuple[tuple[_Edge, _Edge], ...]
    """Of each trained span."""

    def fit(self, texts: Sequence[str], rendering: str) -> tuple[Span, ...] | None:
        """Returns the trained spans of a conversation, or None when the shape does not explain it.

        Args:
            texts: Of each message.
            rendering: Of the conversation, by the template.
        """
        parts = [self.fixed[0]]
        for index, fixed in zip(self.order, self.fixed[1:], strict=True):
            parts += (texts[index], fixed)
        if "".join(parts) != rendering:
            return None
        before = [0, *accumulate(len(texts[index]) for index in self.order)]
        return tuple((start[0] + before[start[1]], end[0] + before[end[1]]) for start, end in self.edges)


def shape_of(rendering: str, spans: Sequence[Span]) -> Shape:
    """Reads a shape off what was proved for a conversation of sentinels.

    Args:
        rendering: Of that conversation.
        spans: Trained in it.
    """
    found = [match.span() for match in SENTINEL.finditer(rendering)]

    def edge(position: int) -> _Edge:
        before = [end - start for start, end in found if end <= position]
        return position - sum(before), len(before)

    parts = SENTINEL.split(rendering)
    order = tuple(int(index) for index in parts[1::2])
    return Shape(tuple(parts[::2]), order, tuple((edge(start), edge(end)) for start, end in spans))


def with_sentinels(messages: Sequence[Message]) -> list[Message]:
    """Puts a sentinel in the place of every text."""
    return [{**message, "content": sentinel(index)} for index, message in enumerate(messages)]


def is_plain(messages: Sequence[Message]) -> bool:
    """Returns whether messages are nothing but a role and a text that is not blank."""
    return all(len(message) == 2 and message["content"].strip() for message in messages)
