"""The HTTP side of serving: OpenAI's endpoints in front of engine processes.

The paths listed in `build_app` are all there is. The chat template is the model's own and rendered here, so that the
engine sees the tokens that training saw; nothing in a request names a template, a file or an address.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, Literal, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tunerun.chat.faults import ChatFault
from tunerun.chat.template import ChatTemplate
from tunerun.serve import page, replies
from tunerun.serve.fleet import Fleet, Model
from tunerun.serve.guard import ApiError, error_response, guarded, read_body
from tunerun.serve.protocol import Finish, Generate, Text
from tunerun.serve.replies import Reply
from tunerun.serve.requests import Asked, ChatRequest, InvalidRequest, parse_body, parse_chat, parse_completion
from tunerun.serve.supervisor import Answer, EngineBusy, EngineDown, RequestRefused, Supervisor

REQUEST_SECONDS = 600.0
_TOOLS_VARIABLE = "tools"
_TOO_LONG = f"The answer took longer than {REQUEST_SECONDS:g} seconds."

_Parsed = TypeVar("_Parsed")


def build_app(fleet: Fleet, *, key: str | None = None, hosts: frozenset[str] | None = None) -> ASGIApp:
    """Builds the gateway.

    Args:
        fleet: What is served, and what answers.
        key: What clients must send as a Bearer token; None asks for none.
        hosts: Names that the Host header may have; None allows all.
    """
    gateway = Gateway(fleet)
    app = Starlette(
        routes=[
            *page.routes(),
            Route("/health", gateway.health, methods=["GET"]),
            Route("/v1/models", gateway.models, methods=["GET"]),
            Route("/v1/models/{name}", gateway.model, methods=["GET"]),
            Route("/v1/chat/completions", gateway.chat, methods=["POST"]),
            Route("/v1/completions", gateway.complete, methods=["POST"]),
        ],
        exception_handlers={HTTPException: _on_error, Exception: _on_fault},
    )
    app.router.redirect_slashes = False
    return guarded(app, key=key, hosts=hosts)


class Gateway:
    """The endpoints."""

    def __init__(self, fleet: Fleet) -> None:
        """Takes what is served, and what answers."""
        self._fleet = fleet
        self._templates: dict[str, ChatTemplate | None] = {}
        self._created = int(time.time())

    async def health(self, _: Request) -> Response:
        """Says whether every engine can answer."""
        state = self._fleet.state
        return JSONResponse({"status": "ok" if state == "ready" else state}, 200 if state == "ready" else 503)

    async def models(self, _: Request) -> Response:
        """Lists the models, before they are loaded too: clients check the address with this call."""
        return JSONResponse(replies.models(self._fleet.models, self._created))

    async def model(self, request: Request) -> Response:
        """Shows one model of the list."""
        model = self._model(request.path_params["name"])
        return JSONResponse(replies.model(model.target.name, self._created))

    async def chat(self, request: Request) -> Response:
        """Answers a conversation."""
        asked = await _parsed(request, lambda body: parse_chat(parse_body(body)))
        model = self._model(asked.asked.model)
        generate = asked.asked.generate(self._render(model, asked), model.target.adapter_name, plain=False)
        return await self._respond(request, model, asked.asked, generate, "chat")

    async def complete(self, request: Request) -> Response:
        """Continues a text."""
        asked = await _parsed(request, lambda body: parse_completion(parse_body(body)))
        model = self._model(asked.asked.model)
        generate = asked.asked.generate(asked.prompt, model.target.adapter_name, plain=True)
        return await self._respond(request, model, asked.asked, generate, "completion")

    def _model(self, name: str | None) -> Model:
        if name is None:
            return self._fleet.first
        if name not in self._fleet.models:
            known = ", ".join(self._fleet.models)
            message = f"There is no model {name[:80]!r} here; served are: {known}."
            raise ApiError(404, message, code="model_not_found", field="model")
        return self._fleet.models[name]

    def _template(self, model: Model) -> ChatTemplate | None:
        name = model.target.name
        if name not in self._templates:
            if model.engine.ready is None:
                raise _down(f"the engine is {model.engine.state}")
            self._templates[name] = model.target.chat_template(model.engine.ready)
        return self._templates[name]

    def _render(self, model: Model, asked: ChatRequest) -> str:
        template = self._template(model)
        if template is None:
            raise ApiError(400, "The model has no chat template; ask /v1/completions instead.", code="no_chat_template")
        if asked.tools is not None and _TOOLS_VARIABLE not in (template.tool_text or template.text):
            raise ApiError(400, "The model's chat template has no place for tools.", field="tools")
        try:
            return template.render(asked.messages, asked.tools, generation_prompt=True)
        except (ChatFault, ArithmeticError) as error:
            detail = error.detail if isinstance(error, ChatFault) else f"the chat template fails: {error}"
            raise ApiError(400, detail, code="template_refuses", field="messages") from error

    async def _respond(
        self, request: Request, model: Model, asked: Asked, generate: Generate, kind: Literal["chat", "completion"]
    ) -> Response:
        deadline = asyncio.get_running_loop().time() + REQUEST_SECONDS
        reply = replies.new_reply(kind, model.target.name)
        answer = await _while_connected(request, _ask(model.engine, generate, deadline))
        if asked.stream:
            return _EventStream(_events(reply, answer, deadline, include_usage=asked.include_usage), answer)
        try:
            return JSONResponse(await _while_connected(request, _whole(reply, answer, deadline)))
        finally:
            answer.close()


class _EventStream(StreamingResponse):
    """Server-sent events; the answer is given up when the stream ends, however it ends."""

    def __init__(self, events: AsyncIterator[bytes], answer: Answer) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.close()


async def _parsed(request: Request, parse: Callable[[bytes], _Parsed]) -> _Parsed:
    body = await read_body(request)
    try:
        return parse(body)
    except InvalidRequest as error:
        raise ApiError(400, str(error), field=error.field) from error
    except RecursionError as error:
        raise ApiError(400, "The body is nested too deeply.") from error


async def _ask(engine: Supervisor, generate: Generate, deadline: float) -> Answer:
    try:
        async with asyncio.timeout_at(deadline):
            return await engine.ask(generate)
    except RequestRefused as error:
        raise ApiError(400, str(error), code=error.code) from error
    except EngineBusy as error:
        raise ApiError(429, f"Too many requests: {error}.", code="busy", headers={"retry-after": "1"}) from error
    except EngineDown as error:
        raise _down(str(error)) from error
    except TimeoutError as error:
        raise ApiError(504, _TOO_LONG, code="timeout") from error


async def _whole(reply: Reply, answer: Answer, deadline: float) -> Mapping[str, Any]:
    parts: list[str] = []
    try:
        async for message in answer.messages(deadline):
            if isinstance(message, Finish):
                if message.reason == "error":
                    raise ApiError(500, f"The answer could not be computed: {message.message}.", code="engine_error")
                text = "".join(parts)
                return reply.whole(text, message.reason, answer.prompt_tokens, message.completion_tokens)
            parts.append(message.text)
    except EngineDown as error:
        raise _down(str(error)) from error
    except TimeoutError as error:
        raise ApiError(504, _TOO_LONG, code="timeout") from error
    raise AssertionError("an answer ends with a Finish")


async def _events(reply: Reply, answer: Answer, deadline: float, *, include_usage: bool) -> AsyncIterator[bytes]:
    opening = reply.opening()
    if opening is not None:
        yield replies.event(opening)
    try:
        async for message in answer.messages(deadline):
            if isinstance(message, Text):
                yield replies.event(reply.delta(message.text))
            elif message.reason == "error":
                yield _error_event(500, f"The answer could not be computed: {message.message}.", "engine_error")
                return
            else:
                yield replies.event(reply.closing(message.reason))
                if include_usage:
                    yield replies.event(reply.usage_chunk(answer.prompt_tokens, message.completion_tokens))
    except EngineDown as error:
        yield _error_event(503, f"Service unavailable: {error}.", "engine_down")
        return
    except TimeoutError:
        yield _error_event(504, _TOO_LONG, "timeout")
        return
    yield replies.DONE


async def _while_connected(request: Request, work: Coroutine[Any, Any, _Parsed]) -> _Parsed:
    """Waits for a result, but no longer than the client does.

    Raises:
        ApiError: The client went away.
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        # Nobody reads it.
        raise ApiError(400, "The client went away.")
    finally:
        for waiting in (task, gone):
            waiting.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _on_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(error)


async def _on_fault(_: Request, __: Exception) -> Response:
    # The framework raises the error again after this, so that the log has its traceback.
    return error_response(ApiError(500, "The server failed on this request."))


def _down(detail: str) -> ApiError:
    return ApiError(503, f"Service unavailable: {detail}.", code="engine_down", headers={"retry-after": "1"})


def _error_event(status: int, message: str, code: str) -> bytes:
    return replies.event(replies.error(status, message, code=code))
