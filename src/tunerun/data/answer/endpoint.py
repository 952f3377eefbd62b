"""Asks an OpenAI-compatible endpoint: one request at a time for each caller, repeated while that makes sense.

Without streaming: a row needs its whole answer anyway, and a cut connection then is one error and no half answer.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import httpx

import tunerun
from tunerun.config.schema import AnswerConfig
from tunerun.config.typed import nearest
from tunerun.data.answer import reply
from tunerun.data.answer.reply import Reply
from tunerun.errors import Problem, StageError, UserError
from tunerun.network import address

# An answer of 100 thousand tokens has less than a megabyte.
_MAX_BODY_BYTES = 64 << 20
_CONNECT_SECONDS = 10.0
_LIST_SECONDS = 20.0
_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 60.0
_LONGEST_ASKED_WAIT_SECONDS = 600.0
_SHOWN_CHARACTERS = 300
_KEY = "answer.api_key_env"
# Busy or failing for a moment; the rest of 4xx says that the request is wrong.
_PASSING = frozenset((408, 409, 425, 429, *range(500, 600)))
# Wrong for every prompt alike.
_HOPELESS = frozenset((*range(300, 400), 401, 402, 403, 404, 405, 410))
_NO_ANSWER = "is no chat completion"
_OUT_OF_CREDIT = "insufficient_quota"


class Rejected(Exception):  # noqa: N818 (a finding about one prompt, counted by the caller)
    """The endpoint does not take this prompt: it is too long for it, say."""


class NoAnswer(Exception):  # noqa: N818
    """This prompt got no answer in all attempts, while others did."""


class _Passing(Exception):  # noqa: N818
    """A failure that may be gone in a moment."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait
        """Seconds that the endpoint asks to wait."""


class Endpoint:
    """A teacher that can be asked; from `connect`."""

    def __init__(
        self, client: httpx.AsyncClient, answer: AnswerConfig, key: str | None, tell: Callable[[str], None]
    ) -> None:
        """Takes an open client.

        Args:
            client: Sends the key with each request.
            answer: Where, how often and how long.
            key: For taking it out of what the endpoint says.
            tell: Shows what is waited for.
        """
        self._client, self._answer, self._key, self._tell = client, answer, key, tell
        assert answer.url is not None
        self._url = answer.url.rstrip("/")
        self._last_success = float("-inf")
        self._resume_at = float("-inf")

    async def check(self) -> None:
        """Finds out whether the endpoint is there, before prompts are sent.

        Raises:
            UserError: Nobody listens there, or the key is not taken.
        """
        try:
            response, body = await self._send("GET", "models")
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise UserError(self._unreachable(error)) from error
        except (httpx.HTTPError, TimeoutError):
            # Prompts are tried all the same, and more than once.
            return
        if response.status_code in (401, 403):
            raise UserError(self._hopeless(response, body))

    async def ask(self, body: Mapping[str, Any]) -> Reply:
        """Sends a chat completion request until it is answered.

        Raises:
            UserError: No prompt will be answered: the address, the key or the model is wrong.
            StageError: The endpoint has stopped answering.
            Rejected: It does not take this request.
            NoAnswer: It did not answer this request.
        """
        started = time.monotonic()
        for attempt in range(self._answer.retries + 1):
            await asyncio.sleep(max(self._resume_at - time.monotonic(), 0.0))
            try:
                found = await self._attempt(body)
            except _Passing as passing:
                reason = str(passing)
                if attempt < self._answer.retries:
                    await self._wait(attempt, passing)
                continue
            self._last_success = time.monotonic()
            return found
        if self._last_success > started:
            raise NoAnswer(f"{reason} ({self._answer.retries + 1} attempts)")
        raise StageError(
            f"answer.url: {self._url} has stopped answering: {reason} ({self._answer.retries + 1} attempts). "
            "The answers so far are kept: tunerun resume goes on."
        )

    async def _attempt(self, body: Mapping[str, Any]) -> Reply:
        try:
            response, content = await self._send("POST", "chat/completions", body)
        except TimeoutError as error:
            raise _Passing(f"no answer within {self._answer.timeout:g} s (answer.timeout)") from error
        except httpx.HTTPError as error:
            raise _Passing(_transport(error)) from error
        status = response.status_code
        if status == HTTPStatus.OK:
            try:
                return reply.parse(json.loads(content))
            except (ValueError, RecursionError) as error:
                said = self._clean(_error(content)[1])[:_SHOWN_CHARACTERS]
                raise _Passing(f"what came back {_NO_ANSWER}: {said!r}") from error
        code, _ = _error(content)
        if status in _HOPELESS or (status == HTTPStatus.TOO_MANY_REQUESTS and code == _OUT_OF_CREDIT):
            raise UserError(await self._explained(response, content))
        if status in _PASSING:
            raise _Passing(self._said(response, content), _asked_wait(response.headers))
        raise Rejected(self._said(response, content))

    async def _send(
        self, method: str, call: str, body: Mapping[str, Any] | None = None
    ) -> tuple[httpx.Response, bytes]:
        """Returns a response and its body; a list of models is not waited for as long as an answer.

        Raises:
            httpx.HTTPError: The connection failed, or the body is too long.
            TimeoutError: It took too long.
        """
        content = bytearray()
        seconds = self._answer.timeout if body is not None else min(self._answer.timeout, _LIST_SECONDS)
        async with (
            asyncio.timeout(seconds),
            self._client.stream(method, f"{self._url}/{call}", json=body) as response,
        ):
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > _MAX_BODY_BYTES:
                    raise httpx.DecodingError("the body is too long", request=response.request)
        return response, bytes(content)

    async def _wait(self, attempt: int, passing: _Passing) -> None:
        usual = min(_FIRST_WAIT_SECONDS * 2**attempt, _LONGEST_WAIT_SECONDS)
        # At random, so that requests that failed together do not come back together.
        seconds = usual * random.uniform(0.5, 1.0)
        if passing.wait is not None:
            seconds = min(passing.wait, _LONGEST_ASKED_WAIT_SECONDS)
            # What is asked of one is meant for all.
            self._resume_at = max(self._resume_at, time.monotonic() + seconds)
        self._tell(f"{passing}; again in {seconds:.0f} s")
        await asyncio.sleep(seconds)

    async def _explained(self, response: httpx.Response, content: bytes) -> Problem:
        problem = self._hopeless(response, content)
        if response.status_code != HTTPStatus.NOT_FOUND:
            return problem
        names = await self._models()
        if names and self._answer.model not in names:
            assert self._answer.model is not None
            what = f"{self._url} has no {self._answer.model}."
            return Problem(where="answer.model", what=what, fix=nearest(self._answer.model, names))
        return problem

    async def _models(self) -> list[str]:
        """Returns the names that the endpoint lists; none when it does not say."""
        try:
            _, content = await self._send("GET", "models")
            return [str(item["id"]) for item in json.loads(content)["data"]]
        except (httpx.HTTPError, TimeoutError, ValueError, LookupError, TypeError):
            return []

    def _hopeless(self, response: httpx.Response, content: bytes) -> Problem:
        said, status = self._said(response, content), response.status_code
        if status in (401, 403):
            fix = f"Set {_KEY} to the name of a variable that holds the endpoint's key."
            if self._answer.api_key_env is not None:
                fix = f"See whether {self._answer.api_key_env} holds the key of this endpoint."
            return Problem(where=_KEY, what=f"{self._url} refuses: {said}.", fix=fix)
        if status == HTTPStatus.PAYMENT_REQUIRED or status == HTTPStatus.TOO_MANY_REQUESTS:
            fix = "See the account's limits; tunerun resume goes on."
            return Problem(where=_KEY, what=f"the account has no credit left: {said}.", fix=fix)
        if 300 <= status < 400:
            target = response.headers.get("location", "nowhere").partition("?")[0]
            what = f"{self._url} sends on to {self._clean(target)}, which is not followed."
            return Problem(where="answer.url", what=what, fix="Write the address that it leads to.")
        fix = "See whether the address ends as the endpoint's documents say, most often in /v1, and the model's name."
        return Problem(where="answer.url", what=f"{self._url}/chat/completions: {said}.", fix=fix)

    def _unreachable(self, error: httpx.TransportError) -> Problem:
        reason = _cause(error)
        assert self._answer.url is not None
        fix = "See whether the address is right, and can be reached from here."
        if address(self._answer.url).is_here:
            fix = "Start the server (tunerun serve, vllm serve, ...), or mend the address."
        return Problem(where="answer.url", what=f"{self._url} cannot be reached: {reason}.", fix=fix)

    def _said(self, response: httpx.Response, content: bytes) -> str:
        """Returns status and message of an error, without the key, which some endpoints repeat."""
        _, message = _error(content)
        text = self._clean(" ".join(message.split()))[:_SHOWN_CHARACTERS].rstrip(".")
        status = f"{response.status_code} {response.reason_phrase}".strip()
        return f"{status}: {text}" if text else status

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "[redacted]") if self._key else text


@asynccontextmanager
async def connect(answer: AnswerConfig, key: str | None, tell: Callable[[str], None]) -> AsyncIterator[Endpoint]:
    """Opens connections to an endpoint.

    Args:
        answer: Where it is, and how many requests wait at a time.
        key: Sent with each request.
        tell: Shows what is waited for.
    """
    assert answer.url is not None
    headers = {"User-Agent": f"tunerun/{tunerun.__version__}"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    async with httpx.AsyncClient(
        headers=headers,
        limits=httpx.Limits(max_connections=answer.concurrent, max_keepalive_connections=answer.concurrent),
        # `Endpoint` limits the whole of a request instead of each read.
        timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
        # A proxy has no way to this machine.
        trust_env=not address(answer.url).is_here,
    ) as client:
        yield Endpoint(client, answer, key, tell)


def _error(content: bytes) -> tuple[str | None, str]:
    """Returns code and message of an error body; other bodies are the message themselves."""
    try:
        body = json.loads(content)
        error = body["error"]
        if isinstance(error, str):
            return None, error
        return error.get("code"), str(error["message"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None, content[:_SHOWN_CHARACTERS].decode("utf-8", "replace")


def _transport(error: httpx.HTTPError) -> str:
    return f"{type(error).__name__}: {_cause(error)}"


def _cause(error: BaseException) -> str:
    """Returns what the system says of a connection that failed; httpx says only that it did."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.strerror:
            # asyncio puts the address where the reason belongs; errors of name servers have numbers of their own.
            return os.strerror(found.errno) if found.errno and found.errno > 0 else found.strerror
        error, found = found, found.__cause__ or found.__context__
    return str(error) or type(error).__name__


def _asked_wait(headers: httpx.Headers) -> float | None:
    """Reads Retry-After: seconds, or a date (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    if value.isdecimal():
        return float(value)
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return None
