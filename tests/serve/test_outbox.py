from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tunerun.serve.engines.outbox import INTERVAL_SECONDS, Outbox
from tunerun.serve.protocol import Accepted, Finish, Message, Text, decode

LONG_SECONDS = 5.0


class Reader:
    """The gateway's end."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._rest = connection, b""

    def until(self, last: type[Message], count: int = 1) -> list[Message]:
        """Returns what comes up to the `count`th message of a kind."""
        found: list[Message] = []
        while sum(isinstance(message, last) for message in found) < count:
            found += self.there(LONG_SECONDS)
        return found

    def there(self, seconds: float) -> list[Message]:
        """Returns what is there, or comes first within some seconds."""
        if not select.select([self._connection], [], [], seconds)[0]:
            return []
        lines = (self._rest + self._connection.recv(1 << 20)).split(b"\n")
        self._rest = lines.pop()
        return [decode(line) for line in lines]


@pytest.fixture
def ends() -> Iterator[tuple[Outbox, Reader]]:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        yield Outbox(mine), Reader(theirs)


def text(number: int, said: str, *scores: int) -> Text:
    return Text(id=number, text=said, scores=tuple({"logprob": score} for score in scores))


def finish(number: int) -> Finish:
    return Finish(id=number, reason="stop", completion_tokens=1)


def test_the_first_text_is_there_as_soon_as_it_is_sent(ends):
    outbox, reader = ends
    outbox.send(text(0, "a"))
    assert reader.there(0) == [text(0, "a")]


def test_text_of_a_slow_engine_goes_a_token_at_a_time(ends):
    outbox, reader = ends
    for letter in "abc":
        outbox.send(text(0, letter))
        assert reader.there(0) == [text(0, letter)]
        time.sleep(INTERVAL_SECONDS)


def test_text_that_is_held_comes_in_time_when_nothing_follows(ends):
    outbox, reader = ends
    outbox.send(text(0, "a"))
    outbox.send(text(0, "b"))
    assert reader.until(Text, 2) == [text(0, "a"), text(0, "b")]


def test_text_that_comes_fast_is_joined_with_its_scores(ends):
    outbox, reader = ends
    for number in range(500):
        outbox.send(text(0, f"{number} ", number))
    outbox.send(finish(0))
    *pieces, last = reader.until(Finish)
    assert last == finish(0)
    assert "".join(piece.text for piece in pieces) == "".join(f"{number} " for number in range(500))
    assert [score["logprob"] for piece in pieces for score in piece.scores] == list(range(500))
    assert len(pieces) < 250


def test_an_answers_end_and_other_messages_wait_for_nothing(ends):
    outbox, reader = ends
    outbox.send(text(0, "a"))
    reader.there(0)
    outbox.send(text(0, "b"))
    outbox.send(Accepted(id=1, prompt_tokens=3))
    assert reader.there(0) == [text(0, "b"), Accepted(id=1, prompt_tokens=3)]
    outbox.send(text(0, "c"))
    outbox.send(finish(0))
    assert reader.there(0) == [text(0, "c"), finish(0)]


def test_answers_on_several_threads_keep_their_text_apart_and_in_order(ends):
    outbox, reader = ends

    def speak(number: int) -> None:
        for count in range(200):
            outbox.send(text(number, f"{number}.{count} "))
        outbox.send(finish(number))

    threads = [threading.Thread(target=speak, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    said, ended = dict.fromkeys(range(8), ""), set()
    for message in reader.until(Finish, 8):
        assert isinstance(message, Text | Finish)
        assert message.id not in ended
        if isinstance(message, Finish):
            ended.add(message.id)
        else:
            said[message.id] += message.text
    assert said == {number: "".join(f"{number}.{count} " for count in range(200)) for number in range(8)}


def test_a_gateway_that_is_gone_is_no_error(ends):
    outbox, reader = ends
    reader._connection.close()
    outbox.send(text(0, "a"))
    outbox.send(finish(0))
