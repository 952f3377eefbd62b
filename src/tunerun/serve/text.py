"""From tokens to text as it can be sent: whole characters, and nothing of a stop text."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

_REPLACEMENT = "\ufffd"
# A character has at most four bytes: tokens held back longer than this spell no character at all.
_MAX_HELD_TOKENS = 6


class Decoder(Protocol):
    """Turns tokens into text, one at a time."""

    def push(self, token: int) -> str:
        """Takes a token and returns the characters it completes."""

    def flush(self) -> str:
        """Returns what is still held at the end; half a character is dropped."""


class PieceDecoder:
    """Decodes tokens that stand for bytes each on its own, as in llama.cpp."""

    def __init__(self, piece: Callable[[int], bytes]) -> None:
        """Takes the function that gives a token's bytes."""
        self._piece = piece
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Takes a token and returns the characters it completes."""
        return self._decoder.decode(self._piece(token))

    def flush(self) -> str:
        """Returns nothing: all that can be held is half a character."""
        return ""


class WindowDecoder:
    """Decodes through a function over token lists whose text depends on the tokens before.

    Decodes a short window twice, with and without the new tokens, and returns the difference.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        """Takes the function that turns token ids into text."""
        self._decode = decode
        self._before: list[int] = []
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """Takes a token and returns the characters it completes."""
        self._held.append(token)
        text = self._new_text()
        if text.endswith(_REPLACEMENT) and len(self._held) < _MAX_HELD_TOKENS:
            return ""
        self._before, self._held = self._held, []
        return text

    def flush(self) -> str:
        """Returns what is still held; half a character is dropped."""
        return self._new_text().rstrip(_REPLACEMENT) if self._held else ""

    def _new_text(self) -> str:
        return self._decode(self._before + self._held)[len(self._decode(self._before)) :]


class Encode(Protocol):
    """Turns text into tokens."""

    def __call__(self, text: str, *, plain: bool) -> list[int]:
        """Recognises special tokens; `plain` adds those that stand around plain text."""


def showing(decoder: Decoder, texts: Sequence[str], encode: Encode) -> Decoder:
    """Returns a decoder that gives some special tokens their text, where another one gives them none."""
    return _ShowingDecoder(decoder, texts, encode) if texts else decoder


class _ShowingDecoder:
    def __init__(self, decoder: Decoder, texts: Sequence[str], encode: Encode) -> None:
        self._decoder = decoder
        ids = [(encode(text, plain=False), text) for text in texts]
        self._shown = {found[0]: text for found, text in ids if len(found) == 1}

    def push(self, token: int) -> str:
        return self._decoder.push(token) or self._shown.get(token, "")

    def flush(self) -> str:
        return self._decoder.flush()


class StopFilter:
    """Lets text through up to the first stop text, whatever pieces the text comes in.

    The stop text that is complete first counts; what may become one is held back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Takes the stop texts, none of them empty."""
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Takes the next piece and returns what can be sent."""
        self._held += text
        found = [(start + len(stop), start) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            start = min(found)[1]
            sendable, self._held = self._held[:start], ""
            return sendable
        keep = max((overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        sendable, self._held = self._held[:cut], self._held[cut:]
        return sendable

    def flush(self) -> str:
        """Returns what was held back, when the text ends without a stop text."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Returns the length of the longest proper beginning of `stop` that `text` ends with."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
