"""Keeps one engine process running for the gateway, and hands each request the messages of its answer."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tunerun.errors import StageError
from tunerun.serve.process import EngineProcess, exit_text
from tunerun.serve.protocol import (
    Ability,
    Accepted,
    Cancel,
    EngineSpec,
    Failed,
    Finish,
    Generate,
    Message,
    Ready,
    Refused,
    Text,
    Tokenize,
    Tokens,
)

# None tells that the engine ended.
Messages = asyncio.Queue[Message | None]
State = Literal["starting", "ready", "restarting"]

_FIRST_DELAY_SECONDS = 0.25
_LONGEST_DELAY_SECONDS = 8.0
# An engine that ran so long before it ended starts again at once, with the first delay.
_STEADY_SECONDS = 60.0


class EngineDown(Exception):  # noqa: N818 (a state that passes)
    """There is no engine at the moment, or it ended before the answer did."""


class EngineBusy(Exception):  # noqa: N818 (a state that passes)
    """As many requests as allowed are being answered."""


class RequestRefused(Exception):  # noqa: N818 (the client's mistake, told by the engine)
    """The engine cannot answer the request as it is."""

    def __init__(self, code: str, message: str) -> None:
        """Takes a short stable name and a sentence."""
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers to one prompt that are being computed."""

    count: int
    prompt_tokens: int
    _first_id: int
    _messages: Messages
    close: Callable[[], None]
    """Gives up those that are not complete."""

    @property
    def has_more(self) -> bool:
        """Whether a piece is there that was not taken yet."""
        return not self._messages.empty()

    async def messages(self, deadline: float) -> AsyncIterator[tuple[int, Text | Finish]]:
        """Yields pieces of text and the end of each answer, with the answer's number from 0 on.

        Args:
            deadline: Time of the event loop's clock at which to give up.

        Raises:
            EngineDown: The engine ended before the answers did.
            TimeoutError: The deadline passed.
        """
        unfinished = self.count
        while unfinished:
            # Around the wait alone: a timeout around a yield would cancel whoever iterates.
            async with asyncio.timeout_at(deadline):
                message = await _next(self._messages)
            if isinstance(message, Accepted):
                continue
            assert isinstance(message, Text | Finish)
            unfinished -= isinstance(message, Finish)
            yield message.id - self._first_id, message


class Supervisor:
    """Starts the engine, starts it again when it ends, and tells its messages apart by request."""

    def __init__(self, spec: EngineSpec, max_concurrent: int) -> None:
        """Takes what the engine loads, and the most requests computed or waiting at a time."""
        self.spec = spec
        self._max_concurrent = max_concurrent
        self._process: EngineProcess | None = None
        self._open: dict[int, Messages] = {}
        self._next_id = 0
        self._failure = ""
        self.state: State = "starting"
        self.restarts = 0
        self.ready: Ready | None = None
        """What the engine said of itself; kept while it restarts."""
        self.became_ready = asyncio.Event()
        """Set once the engine was ready for the first time."""

    @property
    def engine_pid(self) -> int | None:
        """Process id of the engine, or None between two of them."""
        return None if self._process is None else self._process.pid

    async def run(self) -> None:
        """Keeps the engine running until cancelled.

        Raises:
            StageError: The engine could not start the first time.
        """
        loop = asyncio.get_running_loop()
        delay = _FIRST_DELAY_SECONDS
        while True:
            started, code = loop.time(), await self._run_once(loop)
            if not self.became_ready.is_set():
                raise StageError(self._failure or f"the {self.spec.engine} engine ended with {exit_text(code)}")
            if loop.time() - started > _STEADY_SECONDS:
                delay = _FIRST_DELAY_SECONDS
            print(f"serve: the engine ended with {exit_text(code)}; starting it again", file=sys.stderr)
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY_SECONDS)
            self.restarts += 1

    def can(self, ability: Ability) -> bool:
        """Says whether the engine has an ability; none is known before it is ready."""
        return self.ready is not None and ability in self.ready.abilities

    async def ask(self, request: Generate, seeds: Sequence[int]) -> Answers:
        """Sends a request for one answer or several, and waits until the engine has accepted it.

        Args:
            request: Its number and its seed are replaced.
            seeds: One for each answer.

        Raises:
            EngineDown: There is no engine, or it ended at once.
            EngineBusy: Too many requests are being answered.
            RequestRefused: The engine refuses the request.
        """
        process = self._running()
        if len(self._open) + len(seeds) > self._max_concurrent:
            raise EngineBusy(f"{len(self._open)} answers are being computed, of {self._max_concurrent} at most")
        first_id, messages = self._opened(len(seeds))

        def close() -> None:
            for number in range(first_id, first_id + len(seeds)):
                if self._open.pop(number, None) is not None:
                    process.send(Cancel(id=number))

        try:
            for number, seed in enumerate(seeds, first_id):
                process.send(dataclasses.replace(request, id=number, seed=seed))
            # All of them have the same prompt: what is said of one holds for the others.
            first = await _next(messages)
            if isinstance(first, Refused):
                raise RequestRefused(first.code, first.message)
            assert isinstance(first, Accepted)
        except BaseException:
            # A client that goes away cancels the wait.
            close()
            raise
        return Answers(len(seeds), first.prompt_tokens, first_id, messages, close)

    async def tokenize(self, prompt: str, *, plain: bool) -> tuple[int, ...]:
        """Returns the tokens that the engine makes of a prompt.

        Args:
            prompt: Text, in which special tokens are recognised.
            plain: Whether the tokenizer adds the special tokens it puts around plain text.

        Raises:
            EngineDown: There is no engine, or it ended at once.
        """
        process = self._running()
        number, messages = self._opened(1)
        try:
            process.send(Tokenize(id=number, prompt=prompt, plain=plain))
            found = await _next(messages)
        finally:
            self._open.pop(number, None)
        assert isinstance(found, Tokens)
        return found.ids

    def _running(self) -> EngineProcess:
        if self.state != "ready" or self._process is None:
            raise EngineDown(f"the engine is {self.state}")
        return self._process

    def _opened(self, count: int) -> tuple[int, Messages]:
        """Returns the first of some numbers in a row for requests, and where their messages will be."""
        first, messages = self._next_id, asyncio.Queue[Message | None]()
        self._next_id += count
        self._open.update(dict.fromkeys(range(first, first + count), messages))
        return first, messages

    async def _run_once(self, loop: asyncio.AbstractEventLoop) -> int:
        process, ended = EngineProcess(self.spec), asyncio.Event()

        def take() -> None:
            messages = process.read()
            if messages is None:
                loop.remove_reader(process)
                ended.set()
            for message in messages or ():
                self._dispatch(message)

        self._process = process
        # Not on a thread of its own: to change threads for each piece takes longer than all that is done with it.
        loop.add_reader(process, take)
        try:
            await ended.wait()
            return await asyncio.to_thread(process.wait)
        finally:
            loop.remove_reader(process)
            self._process = None
            self._tell_end()
            await asyncio.to_thread(process.close)

    def _dispatch(self, message: Message) -> None:
        if isinstance(message, Ready):
            self.state, self.ready = "ready", message
            self.became_ready.set()
        elif isinstance(message, Failed):
            self._failure = message.message
        elif isinstance(message, Accepted | Refused | Text | Finish | Tokens) and message.id in self._open:
            self._open[message.id].put_nowait(message)
            if isinstance(message, Finish | Refused):
                # Nothing is left to cancel, and another request may come.
                del self._open[message.id]

    def _tell_end(self) -> None:
        self.state = "restarting"
        for messages in self._open.values():
            messages.put_nowait(None)
        self._open.clear()


async def _next(messages: Messages) -> Message:
    message = await messages.get()
    if message is None:
        raise EngineDown("the engine ended before the answer did")
    return message
