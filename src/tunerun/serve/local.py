"""An engine process for callers in this process, such as the terminal chat."""

from __future__ import annotations

import dataclasses
import itertools
import queue
import threading
from collections.abc import Iterator
from functools import cached_property
from types import TracebackType
from typing import Self

from tunerun.errors import StageError
from tunerun.serve.process import EngineProcess, exit_text
from tunerun.serve.protocol import Cancel, EngineSpec, Failed, Finish, Generate, Message, Ready, Refused, Text
from tunerun.serve.spawn import Spawned

# An exit code tells that the engine ended, None that nobody wants the rest of an answer.
Inbox = queue.SimpleQueue[Message | int | None]


class PromptRefused(Exception):  # noqa: N818 (the caller may shorten it)
    """The engine cannot answer the prompt as it is."""

    def __init__(self, code: str, message: str) -> None:
        """Takes a short stable name and a sentence."""
        super().__init__(message)
        self.code = code


class LocalEngine:
    """A running engine, which may be asked by several threads at once; use as a context manager."""

    def __init__(self, spec: EngineSpec, spawned: Spawned | None = None) -> None:
        """Starts the engine, which loads the model while the caller goes on.

        Args:
            spec: What it loads.
            spawned: A process for it that has been started already.
        """
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._inboxes: dict[int, Inbox] = {}
        self._beginning: Inbox = queue.SimpleQueue()
        self._exit_code: int | None = None
        self._process = EngineProcess(spec, spawned)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @cached_property
    def ready(self) -> Ready:
        """What the engine says of itself; waits until the model is loaded.

        Raises:
            StageError: It cannot be loaded.
        """
        message = _checked(self._beginning.get())
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
        number, finished = next(self._numbers), False
        inbox = self._open(number)
        try:
            self._process.send(dataclasses.replace(request, id=number))
            while not finished:
                message = _checked(inbox.get())
                if message is None:
                    return
                finished = isinstance(message, Finish | Refused)
                if isinstance(message, Refused):
                    raise PromptRefused(message.code, message.message)
                if isinstance(message, Text | Finish):
                    yield message
        finally:
            with self._lock:
                del self._inboxes[number]
            if not finished:
                self._process.send(Cancel(id=number))

    def stop_answers(self) -> None:
        """Ends the iterators of all answers where they are."""
        with self._lock:
            for inbox in self._inboxes.values():
                inbox.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.close()
        self._reader.join()

    def _open(self, number: int) -> Inbox:
        inbox: Inbox = queue.SimpleQueue()
        with self._lock:
            self._inboxes[number] = inbox
            if self._exit_code is not None:
                inbox.put(self._exit_code)
        return inbox

    def _read(self) -> None:
        while (messages := self._process.read()) is not None:
            for message in messages:
                self._take(message)
        self._end(self._process.wait())

    def _take(self, message: Message) -> None:
        if isinstance(message, Ready | Failed):
            self._beginning.put(message)
        else:
            with self._lock:
                # What comes late of an answer that was cancelled has no inbox any more.
                inbox = self._inboxes.get(message.id)
            if inbox is not None:
                inbox.put(message)

    def _end(self, code: int) -> None:
        with self._lock:
            self._exit_code = code
            for inbox in (self._beginning, *self._inboxes.values()):
                inbox.put(code)


def _checked(message: Message | int | None) -> Message | None:
    if isinstance(message, int):
        raise StageError(f"the engine ended with {exit_text(message)}")
    return message
