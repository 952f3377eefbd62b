"""An answer on its way to the gateway: from tokens to messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunerun.serve.engines.base import Send
from tunerun.serve.protocol import Text
from tunerun.serve.text import Decoder, StopFilter


class Speech:
    """Sends the text of one answer, and with it what is told of its tokens.

    A token goes with its first character; one of which nothing is said, because a stop text cut it off, is not told.
    """

    def __init__(self, number: int, decoder: Decoder, stops: StopFilter, send: Send) -> None:
        """Takes the request's number, what turns tokens into text and ends it, and where messages go."""
        self._number, self._decoder, self._stops, self._send = number, decoder, stops, send
        self._written = self._said = 0
        self._scores: list[tuple[int, Mapping[str, Any]]] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop text has ended the answer."""
        return self._stops.stopped

    def push(self, token: int, score: Mapping[str, Any] | None) -> None:
        """Takes the next token, and what is told of it."""
        if score is not None:
            self._scores.append((self._written, score))
        text = self._decoder.push(token)
        self._written += len(text)
        self._say(self._stops.push(text))

    def write(self, text: str) -> None:
        """Takes text, from servers that tell no tokens."""
        self._written += len(text)
        self._say(self._stops.push(text))

    def end(self) -> None:
        """Sends what was held back, when no stop text has ended the answer."""
        text = self._stops.push(self._decoder.flush())
        if self.stopped:
            self._say(text)
        else:
            self._say(text + self._stops.flush(), last=True)

    def _say(self, text: str, *, last: bool = False) -> None:
        self._said += len(text)
        told = tuple(score for start, score in self._scores if last or start < self._said)
        del self._scores[: len(told)]
        if text or told:
            self._send(Text(id=self._number, text=text, scores=told))
