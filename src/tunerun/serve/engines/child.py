"""The engine process: `python -m tunerun.serve.engines.child SPEC DESCRIPTOR`.

One thread reads requests and tokenizes them at once, so that a prompt that is too long is refused without waiting; the
main thread answers one request after the other. The process ends when the gateway closes the socket, however that came
about.
"""

from __future__ import annotations

import importlib
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from tunerun.errors import TunerunError
from tunerun.serve.engines.base import Engine
from tunerun.serve.protocol import (
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
    decode,
    decode_spec,
    encode,
)
from tunerun.serve.text import StopFilter

ENGINES = {
    "llamacpp": "tunerun.serve.engines.llamacpp:load",
    "transformers": "tunerun.serve.engines.transformers:load",
}

Send = Callable[[Message], None]


@dataclass(frozen=True, slots=True)
class Job:
    """A request that waits for its answer or is being answered."""

    request: Generate
    prompt_ids: list[int]
    limit: int
    """Most tokens of the answer."""
    cancelled: threading.Event = field(default_factory=threading.Event)


class Worker:
    """Takes requests on one thread and answers them on another."""

    def __init__(self, engine: Engine, stops: tuple[str, ...], send: Send) -> None:
        """Takes a loaded engine, texts that end every answer, and where messages go."""
        self._engine, self._send = engine, send
        # A special token has no text in an answer: it is known by its id.
        ids = [engine.encode(stop, plain=False) for stop in stops]
        self._stops, self._end_ids = stops, engine.end_ids.union(found[0] for found in ids if len(found) == 1)
        self._jobs: queue.Queue[Job] = queue.Queue()
        self._open: dict[int, Job] = {}

    def receive(self, message: Message) -> None:
        """Queues or refuses a request, cancels one, or tells the tokens of a prompt."""
        if isinstance(message, Cancel):
            job = self._open.get(message.id)
            if job is not None:
                job.cancelled.set()
            return
        if isinstance(message, Tokenize):
            self._send(Tokens(id=message.id, ids=tuple(self._engine.encode(message.prompt, plain=message.plain))))
            return
        assert isinstance(message, Generate)
        prompt = message.prompt
        ids = self._engine.encode(prompt, plain=message.plain) if isinstance(prompt, str) else list(prompt)
        refusal = self._refusal(message, ids)
        if refusal is not None:
            self._send(refusal)
            return
        room = self._engine.context_tokens - len(ids)
        limit = room if message.max_new_tokens is None else message.max_new_tokens
        job = self._open[message.id] = Job(message, ids, limit)
        self._send(Accepted(id=message.id, prompt_tokens=len(ids)))
        self._jobs.put(job)

    def answer_next(self) -> None:
        """Waits for a request and answers it."""
        job = self._jobs.get()
        try:
            finish = self._answer(job)
        except (RuntimeError, ValueError, MemoryError) as error:
            # What llama.cpp and torch raise when one computation fails; the next request may well be answered.
            print(f"engine: request {job.request.id}: {error}", file=sys.stderr)
            finish = Finish(id=job.request.id, reason="error", completion_tokens=0, message="the engine failed")
        del self._open[job.request.id]
        self._send(finish)

    def _refusal(self, request: Generate, ids: list[int]) -> Refused | None:
        if not ids:
            return Refused(id=request.id, code="empty_prompt", message="The prompt has no tokens.")
        wrong = next((token for token in ids if not 0 <= token < self._engine.vocabulary), None)
        if wrong is not None:
            message = f"Token id {wrong} is not in the vocabulary of {self._engine.vocabulary} tokens."
            return Refused(id=request.id, code="invalid_token", message=message)
        wanted = 1 if request.max_new_tokens is None else request.max_new_tokens
        context = self._engine.context_tokens
        if len(ids) + wanted > context:
            asked = f"the prompt has {len(ids)} and the answer asks for {wanted}"
            message = f"The model's context holds {context} tokens; {asked}."
            return Refused(id=request.id, code="context_length_exceeded", message=message)
        return None

    def _answer(self, job: Job) -> Finish:
        request, engine = job.request, self._engine
        decoder, stops = engine.decoder(), StopFilter((*request.stop, *self._stops))
        computed, ended = 0, False
        for token in engine.generate(job.prompt_ids, job.limit, request, job.cancelled.is_set):
            ended = token in self._end_ids
            if ended or job.cancelled.is_set():
                break
            computed += 1
            self._send_text(request.id, stops.push(decoder.push(token)))
            if stops.stopped:
                break
        if job.cancelled.is_set():
            return Finish(id=request.id, reason="cancelled", completion_tokens=computed)
        if not stops.stopped:
            self._send_text(request.id, stops.push(decoder.flush()) + ("" if stops.stopped else stops.flush()))
        full = computed == job.limit and not ended and not stops.stopped
        return Finish(id=request.id, reason="length" if full else "stop", completion_tokens=computed)

    def _send_text(self, request: int, text: str) -> None:
        if text:
            self._send(Text(id=request, text=text))


def main(argv: list[str]) -> int:
    """Loads an engine and serves it until the socket closes.

    Args:
        argv: The spec as JSON, and the number of the socket's descriptor.

    Returns:
        The exit code; only when the engine cannot be loaded.
    """
    # The gateway decides when to end: it gets the terminal's Ctrl+C too, and closes the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.excepthook = _die
    spec, connection = decode_spec(argv[0]), socket.socket(fileno=int(argv[1]))
    inbox: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    sender = threading.Lock()

    def send(message: Message) -> None:
        with sender:
            connection.sendall(encode(message))

    try:
        engine = _load(spec)
    except (TunerunError, OSError, ValueError, RuntimeError) as error:
        send(Failed(message=str(error)))
        return 1
    worker = Worker(engine, spec.stop, send)
    threading.Thread(target=_receive_all, args=(worker, inbox), daemon=True).start()
    send(
        Ready(
            context_tokens=engine.context_tokens,
            chat_template=engine.chat_template,
            bos_token=engine.bos_token,
            eos_token=engine.eos_token,
        )
    )
    while True:
        worker.answer_next()


def _load(spec: EngineSpec) -> Engine:
    module, _, name = ENGINES[spec.engine].partition(":")
    return cast(Callable[[EngineSpec], Engine], vars(importlib.import_module(module))[name])(spec)


def _read(connection: socket.socket, inbox: queue.Queue[bytes]) -> None:
    with connection.makefile("rb") as lines:
        for line in lines:
            inbox.put(line)
    # The gateway is gone. The main thread may be deep in a computation that no exception reaches.
    os._exit(0)


def _receive_all(worker: Worker, inbox: queue.Queue[bytes]) -> None:
    while True:
        worker.receive(decode(inbox.get()))


def _die(failure: threading.ExceptHookArgs) -> None:
    """Ends the process with its thread: with half of it gone, every request would wait for ever."""
    threading.__excepthook__(failure)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
