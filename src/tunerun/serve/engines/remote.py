"""The service of an engine that is a server of its own: prompts go there as token ids, and answers are streamed back.

Tokens are turned into text here, and stop texts found here, so that an answer ends at the same place and counts the
same tokens whatever computes it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import aiohttp

from tunerun import artifacts
from tunerun.chat.tokenizer import Tokenizer, load_tokenizer
from tunerun.errors import StageError
from tunerun.models.stops import stop_token_ids
from tunerun.serve.engines.base import Loaded, Send, ready
from tunerun.serve.engines.limits import admit
from tunerun.serve.engines.remote_server import Server
from tunerun.serve.engines.speech import Speech
from tunerun.serve.protocol import (
    Ability,
    Accepted,
    Cancel,
    EngineSpec,
    Finish,
    Generate,
    Refused,
    Tokenize,
    Tokens,
)
from tunerun.serve.text import Decoder, StopFilter, WindowDecoder, showing

_CONFIG = "config.json"
_LENGTH = "max_position_embeddings"
_SAID_CHARACTERS = 500
_SERVER_ERROR = 500
_DATA, _DONE = "data: ", "[DONE]"
PROBE = "Who are you?  你好，世界！ 123\n\n\tnaïve 🙂"
"""A text that servers are asked the tokens of; whitespace, digits and bytes are where tokenizers differ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """What one line of a server's stream says."""

    tokens: tuple[int, ...] = ()
    text: str = ""
    """Of servers that stream no token ids."""
    scores: tuple[Mapping[str, Any], ...] = ()
    """As in `Text`, one for each token."""
    reason: Literal["stop", "length"] | None = None
    """Why the answer ends; None while it goes on."""
    computed: int | None = None
    """Tokens of the whole answer, of servers that say so at the end only."""
    failure: str = ""
    """Why there is no more."""
    refused: bool = False
    """Whether the failure is the request's, so that whoever asked should read of it."""


class Api(Protocol):
    """How a kind of server is asked."""

    abilities: tuple[Ability, ...]

    def question(self, request: Generate, prompt_ids: Sequence[int], limit: int) -> tuple[str, Mapping[str, Any]]:
        """Returns the path to post to, and the body.

        Args:
            request: What is asked.
            prompt_ids: Token ids of its prompt.
            limit: Most tokens of the answer.
        """

    def piece(self, line: str, request: Generate) -> Piece | None:
        """Reads a line of the stream of a request; None for one that says nothing."""


class ServedModel(Loaded, Protocol):
    """What is known of the model that a server has loaded."""

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer."""

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""

    def encode(self, text: str, *, plain: bool) -> list[int]:
        """Turns text into token ids; `plain` adds the special tokens that the tokenizer puts around plain text."""

    def decoder(self) -> Decoder:
        """Returns a fresh decoder for one answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model folder that a server has loaded."""

    chat_template: str | None = None
    """Template inside a model file; None where the gateway reads it from the model's folder."""
    tokenizer: Tokenizer
    end_ids: frozenset[int]
    """Tokens that end an answer."""
    stops: tuple[str, ...]
    """Texts that end an answer."""
    vocabulary: int
    context_tokens: int

    def encode(self, text: str, *, plain: bool) -> list[int]:
        """Turns text into token ids; `plain` adds the special tokens that the tokenizer puts around plain text."""
        return self.tokenizer.encode(text, add_special_tokens=plain)

    def decoder(self) -> Decoder:
        """Returns a decoder that leaves special tokens out."""
        return WindowDecoder(self.tokenizer.decode)

    @property
    def bos_token(self) -> str:
        """Text of the token that begins a text; empty when there is none."""
        return self.tokenizer.named.get("bos_token", "")

    @property
    def eos_token(self) -> str:
        """Text of the token that ends a text; empty when there is none."""
        return self.tokenizer.named.get("eos_token", "")


def read_model(spec: EngineSpec) -> Model:
    """Reads a model folder; its context is what is asked for, or else the longest that it was made for.

    Raises:
        UserError: The tokenizer cannot be loaded.
        StageError: The config states no context.
    """
    folder = Path(spec.weights)
    return folder_model(folder, spec.context_tokens or artifacts.read_json(folder / _CONFIG).get(_LENGTH), spec.stop)


def folder_model(folder: Path, context_tokens: int | None, stops: tuple[str, ...]) -> Model:
    """Reads tokenizer and end tokens of a model folder.

    Args:
        folder: The model's.
        context_tokens: Prompt and answer together.
        stops: Texts that end an answer.

    Raises:
        UserError: The tokenizer cannot be loaded.
        StageError: Nobody states the context.
    """
    if context_tokens is None:
        raise StageError(f"{folder}: states no context length. Set serve.context.")
    tokenizer = load_tokenizer(folder)
    # A special token has no text in an answer: it is known by its id.
    ids = [tokenizer.encode(stop, add_special_tokens=False) for stop in stops]
    ends = {found[0] for found in ids if len(found) == 1}
    return Model(
        tokenizer=tokenizer,
        end_ids=stop_token_ids(folder, tokenizer) | ends,
        stops=stops,
        vocabulary=artifacts.read_json(folder / _CONFIG).get("vocab_size") or tokenizer.backend.get_vocab_size(),
        context_tokens=context_tokens,
    )


def read_event(line: str) -> Any:
    """Returns what a line of server-sent events holds; None for one that says nothing, as the last of a stream."""
    data = line.removeprefix(_DATA)
    return None if data in (line, _DONE) else json.loads(data)


class RemoteService:
    """Hands requests to a server, as many at a time as come."""

    def __init__(self, server: Server, api: Api, model: ServedModel, send: Send) -> None:
        """Takes a server that is ready, and where messages go."""
        self._server, self._api, self._model, self._send = server, api, model, send
        self._loop = asyncio.new_event_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._answers: dict[int, asyncio.Task[None]] = {}
        self._session = self._loop.run_until_complete(server.endpoint.session())
        self.ready = ready(model, api.abilities)

    def receive(self, message: Generate | Cancel | Tokenize) -> None:
        """Starts or refuses an answer, gives one up, or tells the tokens of a prompt."""
        if isinstance(message, Cancel):
            self._loop.call_soon_threadsafe(self._give_up, message.id)
        elif isinstance(message, Tokenize):
            ids = self._model.encode(message.prompt, plain=message.plain)
            self._send(Tokens(id=message.id, ids=tuple(ids)))
        else:
            self._begin(message)

    def run(self) -> int:
        """Passes answers on until the server ends; its end is this process's."""
        threading.Thread(target=self._await_end, daemon=True).start()
        code = self._loop.run_until_complete(self._ended)
        print(f"serve: the server ended with exit code {code}", file=sys.stderr)
        return 1

    def _await_end(self) -> None:
        code = self._server.wait()
        self._loop.call_soon_threadsafe(self._ended.set_result, code)

    def _begin(self, request: Generate) -> None:
        admitted = admit(request, self._model)
        if isinstance(admitted, Refused):
            self._send(admitted)
            return
        ids, limit = admitted
        self._send(Accepted(id=request.id, prompt_tokens=len(ids)))
        self._loop.call_soon_threadsafe(self._start, request, ids, limit)

    def _start(self, request: Generate, ids: list[int], limit: int) -> None:
        answer = self._loop.create_task(self._answer(request, ids, limit))
        self._answers[request.id] = answer
        answer.add_done_callback(lambda done: self._close(request.id, done))

    def _close(self, number: int, answer: asyncio.Task[None]) -> None:
        del self._answers[number]
        error = None if answer.cancelled() else answer.exception()
        if error is not None:
            # A mistake of ours: with half of the process gone, requests would wait for ever.
            self._ended.set_exception(error)

    def _give_up(self, number: int) -> None:
        # Closes the connection, which is how these servers learn that nobody waits any more.
        if number in self._answers:
            self._answers[number].cancel()

    async def _answer(self, request: Generate, ids: list[int], limit: int) -> None:
        telling = _Telling(request, self._model, self._send)
        try:
            async for piece in self._pieces(request, ids, limit):
                if telling.push(piece):
                    break
            finish = telling.finish()
        except asyncio.CancelledError:
            finish = Finish(id=request.id, reason="cancelled", completion_tokens=telling.computed)
        except (aiohttp.ClientError, OSError, ValueError, KeyError) as error:
            finish = telling.failed(f"{type(error).__name__}: {error}")
        self._send(finish)

    async def _pieces(self, request: Generate, ids: list[int], limit: int) -> AsyncIterator[Piece]:
        path, body = self._api.question(request, ids, limit)
        async with self._session.post(path, json=body) as response:
            if not response.ok:
                said = (await response.text(errors="replace"))[:_SAID_CHARACTERS]
                yield Piece(failure=f"status {response.status}: {said}", refused=response.status < _SERVER_ERROR)
                return
            async for line in _lines(response.content):
                piece = self._api.piece(line, request)
                if piece is not None:
                    yield piece


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[str]:
    """Yields a stream's lines; those of the library have a longest length."""
    begun = b""
    async for chunk in stream.iter_any():
        *lines, begun = (begun + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode()
    if begun:
        yield begun.decode()


class _Telling:
    """One answer on its way from the server to the gateway."""

    def __init__(self, request: Generate, model: ServedModel, send: Send) -> None:
        decoder = showing(model.decoder(), request.shown, model.encode)
        self._speech = Speech(request.id, decoder, StopFilter((*request.stop, *model.stops)), send)
        self._id, self._end_ids = request.id, model.end_ids
        self._reason: Literal["stop", "length"] | None = None
        self._failure, self._refused = "", False
        self.computed = 0
        """Tokens of the answer so far, without the end token."""

    def push(self, piece: Piece) -> bool:
        """Passes a piece on; True when the rest of the stream does not matter."""
        self._failure, self._refused = piece.failure, piece.refused
        if piece.failure:
            return True
        self._reason = piece.reason or self._reason
        if self._push_tokens(piece):
            self._reason = "stop"
            return True
        if piece.text:
            self.computed += 1
            self._speech.write(piece.text)
        self.computed = self.computed if piece.computed is None else piece.computed
        if self._speech.stopped:
            self._reason = "stop"
        return self._speech.stopped

    def finish(self) -> Finish:
        """Passes on what is left, and says how the answer ended."""
        if self._failure or self._reason is None:
            return self.failed(self._failure or "the stream broke off")
        if not self._speech.stopped:
            self._speech.end()
        reason = "stop" if self._speech.stopped else self._reason
        return Finish(id=self._id, reason=reason, completion_tokens=self.computed)

    def failed(self, why: str) -> Finish:
        """Says in the log why there is no answer, and that there is none."""
        print(f"serve: request {self._id}: {why}", file=sys.stderr)
        message = f"the engine refuses it: {why}" if self._refused else "the engine failed"
        return Finish(id=self._id, reason="error", completion_tokens=self.computed, message=message)

    def _push_tokens(self, piece: Piece) -> bool:
        """Passes tokens on; True when one of them ended the answer."""
        for index, token in enumerate(piece.tokens):
            if token in self._end_ids:
                return True
            self.computed += 1
            self._speech.push(token, piece.scores[index] if piece.scores else None)
            if self._speech.stopped:
                return True
        return False
