"""An engine process for one caller in this process, such as the terminal chat."""

from __future__ import annotations

import dataclasses
import queue
from collections.abc import Iterator
from functools import cached_property
from types import TracebackType
from typing import Self

from tunerun.errors import StageError
from tunerun.serve.process import EngineProcess, exit_text
from tunerun.serve.protocol import Cancel, EngineSpec, Failed, Finish, Generate, Message, Ready, Refused, Text


class PromptRefused(Exception):  # noqa: N818 (the caller may shorten it)
    """The engine cannot answer the prompt as it is."""

    def __init__(self, code: str, message: str) -> None:
        """Takes a short stable name and a sentence."""
        super().__init__(message)
        self.code = code


class LocalEngine:
    """A running engine; use as a context manager."""

    def __init__(self, spec: EngineSpec) -> None:
        """Starts the engine, which loads the model while the caller goes on."""
        self._messages: queue.SimpleQueue[Message | int] = queue.SimpleQueue()
        self._process = EngineProcess(spec, self._messages.put, self._messages.put)
        self._next_id = 0

    @cached_property
    def ready(self) -> Ready:
        """What the engine says of itself; waits until the model is loaded, which comes before the first answer.

        Raises:
            StageError: It cannot be loaded.
        """
        message = self._next()
        if isinstance(message, Failed):
            raise StageError(message.message)
        assert isinstance(message, Ready)
        return message

    def answer(self, request: Generate) -> Iterator[Text | Finish]:
        """Yields pieces of an answer, then its end; closing the iterator early cancels the answer.

        Raises:
            PromptRefused: The engine refuses the prompt.
            StageError: The engine ended.
        """
        assert self.ready
        number, self._next_id = self._next_id, self._next_id + 1
        self._process.send(dataclasses.replace(request, id=number))
        finished = False
        try:
            while not finished:
                message = self._next()
                if isinstance(message, Refused) and message.id == number:
                    finished = True
                    raise PromptRefused(message.code, message.message)
                # What comes late of an answer that was cancelled has another number.
                if isinstance(message, Text | Finish) and message.id == number:
                    finished = isinstance(message, Finish)
                    yield message
        finally:
            if not finished:
                self._process.send(Cancel(id=number))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.close()

    def _next(self) -> Message:
        message = self._messages.get()
        if isinstance(message, int):
            raise StageError(f"the engine ended with {exit_text(message)}")
        return message
