"""Turns what an engine says into replies: whole, or as a stream of events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunerun.chat.tool_calls import ToolFormat
from tunerun.serve import replies
from tunerun.serve.guard import ApiError
from tunerun.serve.metrics import Watch
from tunerun.serve.protocol import Finish, Text
from tunerun.serve.replies import Reply
from tunerun.serve.supervisor import Answers, EngineDown
from tunerun.serve.tools import Part, ToolParser


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How an answer's text is to be understood."""

    form: ToolFormat | None = None
    """The way tool calls are written; None when there are none to look for."""
    names: tuple[str, ...] = ()
    """Functions that may be called."""
    beginning: str = ""
    """What the prompt already holds of the answer, so that the model must call."""
    parallel: bool = True
    """Whether there may be several calls."""
    scored: bool = False
    """Whether probabilities of tokens are told."""


class Choice:
    """One of the answers of a reply, as it comes."""

    def __init__(self, reply: Reply, index: int, reading: Reading) -> None:
        """Takes the reply, the number of the answer, and how to understand it."""
        self._reply, self._index, self._reading = reply, index, reading
        self._parser = None if reading.form is None else ToolParser(reading.form, reading.names)
        self._text: list[str] = []
        self._calls: list[Mapping[str, Any]] = []
        self._scores: list[Mapping[str, Any]] = []
        self._all_scores: list[Mapping[str, Any]] = []
        self._characters = 0
        self.tokens = 0
        """Tokens of the answer, once it is over."""
        self.reason = ""
        """Why it ended, once it is over."""
        if self._parser is not None:
            begun = self._parser.push(reading.beginning)
            assert not begun, "a call that has begun is not certain yet"

    def push(self, message: Text) -> Iterator[Mapping[str, Any]]:
        """Takes a piece, and yields the chunks that it completes."""
        self._scores += message.scores
        if self._parser is None:
            yield self._say(message.text)
            return
        for part in self._parser.push(message.text):
            yield from self._chunk(part)

    def finish(self, finish: Finish) -> Iterator[Mapping[str, Any]]:
        """Takes the end, and yields the chunks that are left."""
        self.tokens = finish.completion_tokens
        if self._parser is not None:
            for part in self._parser.flush():
                yield from self._chunk(part)
        self.reason = "tool_calls" if self._calls and finish.reason == "stop" else finish.reason
        yield self._reply.closing(self._index, self.reason, self._logprobs())

    def whole(self) -> Mapping[str, Any]:
        """Returns the choice, once it is over."""
        text, scores = "".join(self._text), self._all_scores
        logprobs = self._shape(scores, 0) if self._reading.scored else None
        return self._reply.choice(self._index, text, self._calls, logprobs, self.reason)

    def _chunk(self, part: Part) -> Iterator[Mapping[str, Any]]:
        if isinstance(part, str):
            yield self._say(part)
        elif self._reading.parallel or not self._calls:
            call = replies.tool_call(part)
            self._calls.append(call)
            yield self._reply.call(self._index, len(self._calls) - 1, call, self._logprobs())

    def _say(self, text: str) -> Mapping[str, Any]:
        self._text.append(text)
        chunk = self._reply.text(self._index, text, self._logprobs())
        self._characters += len(text)
        return chunk

    def _logprobs(self) -> Mapping[str, Any] | None:
        """Returns the probabilities that were not told yet."""
        if not self._reading.scored:
            return None
        scores, self._scores = self._scores, []
        self._all_scores += scores
        return self._shape(scores, self._characters) if scores else None

    def _shape(self, scores: Sequence[Mapping[str, Any]], offset: int) -> Mapping[str, Any]:
        if self._reply.kind == "chat":
            return replies.chat_logprobs(scores)
        return replies.completion_logprobs(scores, offset)


class Exchange:
    """A reply with its answers, as they come from an engine."""

    def __init__(self, reply: Reply, answers: Answers, reading: Reading, deadline: float, watch: Watch) -> None:
        """Takes what is asked of the engine, and until when to wait for it."""
        self._reply, self._answers, self._deadline, self._watch = reply, answers, deadline, watch
        self._choices = [Choice(reply, index, reading) for index in range(answers.count)]

    def close(self) -> None:
        """Gives up what is not complete."""
        self._answers.close()
        self._watch.close()

    async def whole(self) -> Mapping[str, Any]:
        """Waits for the whole reply.

        Raises:
            ApiError: The engine failed, or took too long.
        """
        async for _ in self._chunks():
            pass
        choices = [choice.whole() for choice in self._choices]
        return self._reply.whole(choices, self._answers.prompt_tokens, self._completion_tokens())

    async def events(self, *, include_usage: bool) -> AsyncIterator[bytes]:
        """Yields the reply as server-sent events, in one piece what is there at a time; a failure is the last one."""
        openings = (self._reply.opening(index) for index in range(len(self._choices)))
        ready = [replies.event(opening) for opening in openings if opening is not None]
        try:
            async for chunk in self._chunks():
                ready.append(replies.event(chunk))
                # An engine that is faster than the connection is answered in fewer, larger writes.
                if not self._answers.has_more:
                    yield b"".join(ready)
                    ready = []
            if include_usage:
                counts = self._answers.prompt_tokens, self._completion_tokens()
                ready.append(replies.event(self._reply.usage_chunk(*counts)))
            ready.append(replies.DONE)
        except ApiError as error:
            ready.append(replies.event(replies.error(error.status_code, error.detail, code=error.code)))
        yield b"".join(ready)

    async def _chunks(self) -> AsyncIterator[Mapping[str, Any]]:
        try:
            async for index, message in self._answers.messages(self._deadline):
                choice = self._choices[index]
                if isinstance(message, Text):
                    self._watch.text()
                    for chunk in choice.push(message):
                        yield chunk
                    continue
                if message.reason == "error":
                    raise ApiError(500, f"The answer could not be computed: {message.message}.", code="engine_error")
                self._watch.finish(message.completion_tokens)
                for chunk in choice.finish(message):
                    yield chunk
        except EngineDown as error:
            raise down(str(error)) from error
        except TimeoutError as error:
            raise too_long() from error

    def _completion_tokens(self) -> int:
        return sum(choice.tokens for choice in self._choices)


def down(detail: str) -> ApiError:
    """Says that there is no engine at the moment."""
    return ApiError(503, f"Service unavailable: {detail}.", code="engine_down", headers={"retry-after": "1"})


def too_long() -> ApiError:
    """Says that the time of a request is over."""
    return ApiError(504, "The answer took longer than this server allows.", code="timeout")
