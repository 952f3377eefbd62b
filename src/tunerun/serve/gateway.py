"""The HTTP side of serving: OpenAI's endpoints in front of engine processes.

The paths in `ROUTES` and those of the chat page are all there is. The chat template is the model's own and rendered
here, so that the engine sees the tokens that training saw. Tool calls are found here, so that every engine has them.
Nothing in a request names a template, a file or an address.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tunerun.chat.faults import ChatFault
from tunerun.chat.template import ChatTemplate
from tunerun.chat.tool_calls import TOOL_FORMATS, ToolFormat, tool_parser
from tunerun.config.schema import ServeConfig
from tunerun.serve import metrics, openapi, page, replies, requests
from tunerun.serve.answers import Exchange, Reading, down, too_long
from tunerun.serve.fields import InvalidRequest
from tunerun.serve.fleet import Fleet, Model
from tunerun.serve.guard import ApiError, error_response, guarded, read_body
from tunerun.serve.messages import Message, Tool
from tunerun.serve.metrics import Metrics, Watch
from tunerun.serve.protocol import Ability, Generate
from tunerun.serve.requests import Asked, ChatRequest, parse_body
from tunerun.serve.supervisor import Answers, EngineBusy, EngineDown, RequestRefused
from tunerun.serve.tools import forced_beginning, forced_schema

MAX_TOKENIZED_CHARACTERS = 1 << 20
# Path, method, and the method of `Gateway` that answers.
ROUTES = (
    ("/health", "GET", "health"),
    ("/metrics", "GET", "metrics"),
    ("/openapi.json", "GET", "openapi"),
    ("/tokenize", "POST", "tokenize"),
    ("/v1/models", "GET", "models"),
    ("/v1/models/{name}", "GET", "model"),
    ("/v1/chat/completions", "POST", "chat"),
    ("/v1/completions", "POST", "complete"),
)
_TOOLS_VARIABLE = "tools"
_ALLOWED_HEADERS = ("authorization", "content-type")

_Result = TypeVar("_Result")


def build_app(
    fleet: Fleet, serve: ServeConfig, *, key: str | None = None, hosts: frozenset[str] | None = None
) -> ASGIApp:
    """Builds the gateway.

    Args:
        fleet: What is served, and what answers.
        serve: Limits.
        key: What clients must send as a Bearer token; None asks for none.
        hosts: Names that the Host header may have; None allows all.
    """
    gateway = Gateway(fleet, serve)
    app = Starlette(
        routes=[
            *page.routes(),
            *(Route(path, getattr(gateway, name), methods=[method]) for path, method, name in ROUTES),
        ],
        exception_handlers={HTTPException: _on_error, Exception: _on_fault},
    )
    app.router.redirect_slashes = False
    checked: ASGIApp = guarded(app, key=key, hosts=hosts, origins=frozenset(serve.cors_origins))
    if serve.cors_origins:
        checked = CORSMiddleware(
            checked, allow_origins=serve.cors_origins, allow_methods=("GET", "POST"), allow_headers=_ALLOWED_HEADERS
        )
    return metrics.counted(checked, gateway.measured, [path for path, _, _ in ROUTES])


class Gateway:
    """The endpoints."""

    def __init__(self, fleet: Fleet, serve: ServeConfig) -> None:
        """Takes what is served, what answers, and the limits."""
        self._fleet, self._serve = fleet, serve
        self._templates: dict[str, ChatTemplate | None] = {}
        self._created = int(time.time())
        self._chat_fields = requests.chat_fields(serve.max_n)
        self._completion_fields = requests.completion_fields(serve.max_n)
        self.measured = Metrics(fleet)

    async def health(self, _: Request) -> Response:
        """Says whether every engine can answer."""
        state = self._fleet.state
        return JSONResponse({"status": "ok" if state == "ready" else state}, 200 if state == "ready" else 503)

    async def metrics(self, _: Request) -> Response:
        """Tells Prometheus what was measured."""
        return Response(self.measured.text(), media_type=metrics.CONTENT_TYPE)

    async def openapi(self, _: Request) -> Response:
        """Describes the endpoints."""
        return JSONResponse(openapi.document(self._chat_fields, self._completion_fields))

    async def models(self, _: Request) -> Response:
        """Lists the models, before they are loaded too: clients check the address with this call."""
        return JSONResponse(replies.models(self._fleet.models, self._created))

    async def model(self, request: Request) -> Response:
        """Shows one model of the list."""
        model = self._model(request.path_params["name"])
        return JSONResponse(replies.model(model.target.name, self._created))

    async def tokenize(self, request: Request) -> Response:
        """Tells the tokens that a text or a conversation becomes."""
        asked = await self._parsed(request, lambda body: requests.parse_tokenize(parse_body(body)))
        model = self._model(asked.model)
        prompt = asked.prompt
        if asked.messages:
            prompt = self._render(model, asked.messages, asked.tools, generation_prompt=asked.generation_prompt)
        if len(prompt) > MAX_TOKENIZED_CHARACTERS:
            message = f"The prompt has more than {MAX_TOKENIZED_CHARACTERS} characters."
            raise ApiError(400, message, code="prompt_too_long")
        deadline = asyncio.get_running_loop().time() + self._serve.request_seconds
        asking = _in_time(model.engine.tokenize(prompt, plain=asked.special), deadline)
        ids = await _while_connected(request, asking)
        assert model.engine.ready is not None
        return JSONResponse(replies.tokens(ids, model.engine.ready.context_tokens))

    async def chat(self, request: Request) -> Response:
        """Answers a conversation."""
        started = time.perf_counter()
        asked = await self._parsed(request, lambda body: requests.parse_chat(parse_body(body), self._chat_fields))
        model = self._model(asked.asked.model)
        prompt = self._render(model, asked.messages, asked.tools)
        reading, schema = self._reading(model, asked)
        generate = asked.asked.generate(prompt + reading.beginning, model.target.adapter_name, plain=False)
        shown = () if reading.form is None else tuple(filter(None, (reading.form.opening, reading.form.closing)))
        generate = replace(generate, json_schema=schema, shown=shown)
        return await self._respond(request, model, asked.asked, generate, reading, "chat", started=started)

    async def complete(self, request: Request) -> Response:
        """Continues a text."""
        started = time.perf_counter()
        fields = self._completion_fields
        asked = await self._parsed(request, lambda body: requests.parse_completion(parse_body(body), fields))
        model = self._model(asked.asked.model)
        generate = asked.asked.generate(asked.prompt, model.target.adapter_name, plain=True)
        reading = Reading(scored=asked.asked.logprobs is not None)
        return await self._respond(request, model, asked.asked, generate, reading, "completion", started=started)

    async def _parsed(self, request: Request, parse: Callable[[bytes], _Result]) -> _Result:
        body = await read_body(request, self._serve.max_body_bytes)
        try:
            return parse(body)
        except InvalidRequest as error:
            raise ApiError(400, str(error), field=error.field) from error
        except RecursionError as error:
            raise ApiError(400, "The body is nested too deeply.") from error

    def _model(self, name: str | None) -> Model:
        if name is None:
            return self._fleet.first
        if name not in self._fleet.models:
            known = ", ".join(self._fleet.models)
            message = f"There is no model {name[:80]!r} here; served are: {known}."
            raise ApiError(404, message, code="model_not_found", field="model")
        return self._fleet.models[name]

    def _template(self, model: Model) -> ChatTemplate:
        name = model.target.name
        if name not in self._templates:
            if model.engine.ready is None:
                raise down(f"the engine is {model.engine.state}")
            self._templates[name] = model.target.chat_template(model.engine.ready)
        template = self._templates[name]
        if template is None:
            raise ApiError(400, "The model has no chat template; ask /v1/completions instead.", code="no_chat_template")
        return template

    def _render(
        self, model: Model, messages: Sequence[Message], tools: Sequence[Tool], *, generation_prompt: bool = True
    ) -> str:
        template = self._template(model)
        if tools and _TOOLS_VARIABLE not in (template.tool_text or template.text):
            raise ApiError(400, "The model's chat template has no place for tools.", field="tools")
        try:
            return template.render(messages, tools or None, generation_prompt=generation_prompt)
        except (ChatFault, ArithmeticError) as error:
            detail = error.detail if isinstance(error, ChatFault) else f"the chat template fails: {error}"
            raise ApiError(400, detail, code="template_refuses", field="messages") from error

    def _reading(self, model: Model, asked: ChatRequest) -> tuple[Reading, Any]:
        """Returns how to understand the answer, and the JSON schema that it must follow, if any."""
        scored = asked.asked.logprobs is not None
        if asked.json_schema is not None:
            _need(model, "json", "response_format")
        form = self._tool_format(model) if asked.tools else None
        if form is None:
            if asked.must_call:
                message = "How the model writes tool calls is not known, so that none can be asked for."
                raise ApiError(400, message, field="tool_choice")
            return Reading(scored=scored), asked.json_schema
        names = tuple(tool["function"]["name"] for tool in asked.tools)
        reading = Reading(form=form, names=names, parallel=asked.parallel, scored=scored)
        if not asked.must_call:
            return reading, None
        constrained = model.engine.can("json")
        beginning = forced_beginning(form, asked.must_call, constrained=constrained)
        schema = forced_schema(form, asked.tools, asked.must_call) if constrained else None
        return replace(reading, beginning=beginning), schema

    def _tool_format(self, model: Model) -> ToolFormat | None:
        template = self._template(model)
        name = model.target.tool_parser or tool_parser(template.tool_text or template.text)
        return None if name is None else TOOL_FORMATS.get(name)

    async def _respond(
        self,
        request: Request,
        model: Model,
        asked: Asked,
        generate: Generate,
        reading: Reading,
        kind: Literal["chat", "completion"],
        *,
        started: float,
    ) -> Response:
        if asked.logprobs is not None:
            _need(model, "logprobs", "logprobs")
        if asked.seeded and asked.temperature > 0:
            _need(model, "seed", "seed")
        deadline = asyncio.get_running_loop().time() + self._serve.request_seconds
        answers = await _while_connected(request, self._ask(model, generate, asked.seeds, deadline))
        watch = Watch(self.measured, model.target.name, started)
        watch.accepted(answers.prompt_tokens)
        exchange = Exchange(replies.new_reply(kind, model.target.name), answers, reading, deadline, watch)
        if asked.stream:
            return _EventStream(exchange.events(include_usage=asked.include_usage), exchange)
        try:
            return JSONResponse(await _while_connected(request, exchange.whole()))
        finally:
            exchange.close()

    async def _ask(self, model: Model, generate: Generate, seeds: Sequence[int], deadline: float) -> Answers:
        longest = self._serve.max_prompt_tokens
        if longest is not None and isinstance(generate.prompt, tuple) and len(generate.prompt) > longest:
            raise _prompt_too_long(len(generate.prompt), longest)
        answers = await _in_time(model.engine.ask(generate, seeds), deadline)
        if longest is not None and answers.prompt_tokens > longest:
            answers.close()
            raise _prompt_too_long(answers.prompt_tokens, longest)
        return answers


class _EventStream(StreamingResponse):
    """Server-sent events; the answers are given up when the stream ends, however it ends."""

    def __init__(self, events: AsyncIterator[bytes], exchange: Exchange) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._exchange = exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._exchange.close()


def _need(model: Model, ability: Ability, field: str) -> None:
    """Refuses what an engine cannot do."""
    if model.engine.ready is None:
        raise down(f"the engine is {model.engine.state}")
    if not model.engine.can(ability):
        message = f"`{field}` is not possible with the model's engine, {model.target.engine}."
        raise ApiError(400, message, code="unsupported", field=field)


def _prompt_too_long(tokens: int, longest: int) -> ApiError:
    message = f"The prompt has {tokens} tokens, and this server takes {longest}."
    return ApiError(400, message, code="prompt_too_long")


async def _in_time(asking: Coroutine[Any, Any, _Result], deadline: float) -> _Result:
    """Waits for what an engine says at once; its refusals become errors."""
    try:
        async with asyncio.timeout_at(deadline):
            return await asking
    except RequestRefused as error:
        raise ApiError(400, str(error), code=error.code) from error
    except EngineBusy as error:
        raise ApiError(429, f"Too many requests: {error}.", code="busy", headers={"retry-after": "1"}) from error
    except EngineDown as error:
        raise down(str(error)) from error
    except TimeoutError as error:
        raise too_long() from error


async def _while_connected(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
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
