"""The service of an engine that computes in this process.

One thread reads requests and tokenizes them at once, so that a prompt that is too long is refused without waiting. The
main thread computes a token for each open answer in turn; requests wait for a slot in the order in which they came.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from tunerun.serve.engines.base import Chosen, Engine, Send, ready
from tunerun.serve.engines.limits import admit
from tunerun.serve.engines.scores import score
from tunerun.serve.engines.speech import Speech
from tunerun.serve.protocol import Accepted, Cancel, Finish, Generate, Refused, Tokenize, Tokens
from tunerun.serve.text import StopFilter, showing


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
        self._stops, self._end_ids = stops, frozenset(found[0] for found in ids if len(found) == 1)
        self._waiting: queue.Queue[Job] = queue.Queue()
        self._open: dict[int, Job] = {}
        self._answers: list[_Answer] = []
        self.ready = ready(engine, engine.abilities)

    def receive(self, message: Generate | Cancel | Tokenize) -> None:
        """Queues or refuses a request, cancels one, or tells the tokens of a prompt."""
        if isinstance(message, Cancel):
            job = self._open.get(message.id)
            if job is not None:
                job.cancelled.set()
        elif isinstance(message, Tokenize):
            self._send(Tokens(id=message.id, ids=tuple(self._engine.encode(message.prompt, plain=message.plain))))
        else:
            self._queue(message)

    def run(self) -> NoReturn:
        """Answers requests for ever."""
        while True:
            self._admit()
            # Neighbours with the same adapter spare the engine the change.
            for answer in sorted(self._answers, key=lambda answer: answer.job.request.adapter or ""):
                finish = self._advance(answer)
                if finish is not None:
                    self._answers.remove(answer)
                    del self._open[finish.id]
                    self._send(finish)

    def _queue(self, request: Generate) -> None:
        admitted = admit(request, self._engine)
        if not isinstance(admitted, Refused) and (fault := self._engine.fault(request)) is not None:
            admitted = Refused(id=request.id, code="unsupported", message=fault)
        if isinstance(admitted, Refused):
            self._send(admitted)
            return
        ids, limit = admitted
        job = self._open[request.id] = Job(request, ids, limit)
        self._send(Accepted(id=request.id, prompt_tokens=len(ids)))
        self._waiting.put(job)

    def _admit(self) -> None:
        """Starts answers while there are slots; waits for a request when none is open."""
        while len(self._answers) < self._engine.slots:
            try:
                job = self._waiting.get(block=not self._answers)
            except queue.Empty:
                return
            self._answers.append(_Answer(job, self._engine, self._stops, self._end_ids, self._send))

    def _advance(self, answer: _Answer) -> Finish | None:
        try:
            return answer.advance()
        except (RuntimeError, ValueError, MemoryError) as error:
            # What llama.cpp and torch raise when one computation fails; other requests may well be answered.
            number = answer.job.request.id
            print(f"engine: request {number}: {error}", file=sys.stderr)
            return Finish(id=number, reason="error", completion_tokens=0, message="the engine failed")


class _Answer:
    """An answer that is being computed."""

    def __init__(self, job: Job, engine: Engine, stops: tuple[str, ...], end_ids: frozenset[int], send: Send) -> None:
        self.job, request = job, job.request
        self._engine, self._end_ids = engine, end_ids
        self._tokens = engine.generate(job.prompt_ids, job.limit, request)
        decoder = showing(engine.decoder(), request.shown, engine.encode)
        self._speech = Speech(request.id, decoder, StopFilter((*request.stop, *stops)), send)
        self._computed = 0

    def advance(self) -> Finish | None:
        """Computes the next token, or a part of a long prompt; returns the end when there is no more."""
        if self.job.cancelled.is_set():
            return self._finish("cancelled")
        try:
            chosen = next(self._tokens)
        except StopIteration:
            return self._end()
        if chosen is None:
            return None
        if chosen.token in self._end_ids or self._engine.ends(chosen.token):
            return self._end()
        self._computed += 1
        self._speech.push(chosen.token, self._score(chosen))
        if self._speech.stopped:
            return self._finish("stop")
        return self._end() if self._computed == self.job.limit else None

    def _score(self, chosen: Chosen) -> Mapping[str, Any] | None:
        asked = self.job.request.logprobs is not None
        return score(self._engine.piece, chosen.token, chosen.logprob, chosen.top) if asked else None

    def _end(self) -> Finish:
        self._speech.end()
        return self._finish("length" if self._computed == self.job.limit and not self._speech.stopped else "stop")

    def _finish(self, reason: Literal["stop", "length", "cancelled"]) -> Finish:
        self._tokens.close()
        return Finish(id=self.job.request.id, reason=reason, completion_tokens=self._computed)
