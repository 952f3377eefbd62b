"""The service of an engine that computes in this process.

One thread reads requests and tokenizes them at once, so that a prompt that is too long is refused without waiting; the
main thread answers one request after the other.
"""

from __future__ import annotations

import queue
import sys
import threading
from dataclasses import dataclass, field
from typing import NoReturn

from tunerun.serve.engines.base import Engine, Send
from tunerun.serve.engines.limits import refusal
from tunerun.serve.protocol import Accepted, Cancel, Finish, Generate, Ready, Text, Tokenize, Tokens
from tunerun.serve.text import StopFilter


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
        self.ready = Ready(
            context_tokens=engine.context_tokens,
            chat_template=engine.chat_template,
            bos_token=engine.bos_token,
            eos_token=engine.eos_token,
        )

    def receive(self, message: Generate | Cancel | Tokenize) -> None:
        """Queues or refuses a request, cancels one, or tells the tokens of a prompt."""
        if isinstance(message, Cancel):
            job = self._open.get(message.id)
            if job is not None:
                job.cancelled.set()
            return
        if isinstance(message, Tokenize):
            self._send(Tokens(id=message.id, ids=tuple(self._engine.encode(message.prompt, plain=message.plain))))
            return
        prompt = message.prompt
        ids = self._engine.encode(prompt, plain=message.plain) if isinstance(prompt, str) else list(prompt)
        vocabulary, context = self._engine.vocabulary, self._engine.context_tokens
        refused = refusal(message, ids, vocabulary=vocabulary, context_tokens=context)
        if refused is not None:
            self._send(refused)
            return
        room = context - len(ids)
        limit = room if message.max_new_tokens is None else message.max_new_tokens
        job = self._open[message.id] = Job(message, ids, limit)
        self._send(Accepted(id=message.id, prompt_tokens=len(ids)))
        self._jobs.put(job)

    def run(self) -> NoReturn:
        """Answers requests for ever."""
        while True:
            self._answer_next()

    def _answer_next(self) -> None:
        job = self._jobs.get()
        try:
            finish = self._answer(job)
        except (RuntimeError, ValueError, MemoryError) as error:
            # What llama.cpp and torch raise when one computation fails; the next request may well be answered.
            print(f"engine: request {job.request.id}: {error}", file=sys.stderr)
            finish = Finish(id=job.request.id, reason="error", completion_tokens=0, message="the engine failed")
        del self._open[job.request.id]
        self._send(finish)

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
