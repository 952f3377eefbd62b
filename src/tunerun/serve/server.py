"""Runs the gateway and its engines until a signal comes."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

from tunerun import servers
from tunerun.config.schema import ServeConfig
from tunerun.errors import Problem, StageError, UserError
from tunerun.network import is_loopback
from tunerun.plan.placement import Placement
from tunerun.serve.fleet import Fleet, build_fleet, check_targets
from tunerun.serve.gateway import build_app
from tunerun.serve.patience import PatientProtocol
from tunerun.serve.protocol import ServerSettings
from tunerun.serve.targets import Target

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_GRACE_SECONDS = 3
_BACKLOG = 128
_LOOPBACK_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))


def serve_targets(
    targets: Sequence[Target], serve: ServeConfig, placement: Placement, server: ServerSettings | None = None
) -> None:
    """Serves models until SIGINT or SIGTERM, and prints how to reach them once they are ready.

    Args:
        targets: What is served.
        serve: Address, key, context and limits.
        placement: Device, precision and threads of each engine.
        server: For engines that are servers of their own.

    Raises:
        UserError: A name, the address or the key is not as it should be, or a run failed its gates.
        StageError: An engine cannot start.
    """
    check_targets(targets, serve.batching)
    for warning in (text for target in targets for text in (target.unchecked, target.other_base) if text):
        print(f"warning: {warning}", file=sys.stderr)
    check_installed(targets, server)
    key = read_key(serve)
    with _listening(serve.host, serve.port) as listener, _own_signals():
        asyncio.run(_serve(build_fleet(targets, serve, placement, server), serve, key, listener))


def check_installed(targets: Sequence[Target], server: ServerSettings | None) -> None:
    """Checks that the servers are there that targets need.

    Raises:
        UserError: One is not installed.
    """
    python = None if server is None else server.python
    found = (servers.missing(engine, python) for engine in {target.engine: None for target in targets})
    problems = [problem for problem in found if problem is not None]
    if problems:
        raise UserError(problems)


def read_key(serve: ServeConfig) -> str | None:
    """Returns the key that clients must send, or None when none is asked for.

    Raises:
        UserError: The variable is empty, or other machines could ask without a key.
    """
    if serve.api_key_env is None:
        if is_loopback(serve.host):
            return None
        what = f"{serve.host} can be reached from other machines, and no key is asked for."
        fix = "Set serve.api_key_env to the name of a variable that holds a key."
        raise UserError(Problem(where="serve.host", what=what, fix=fix))
    key = os.environ.get(serve.api_key_env, "")
    if not key or not key.isascii() or key != key.strip():
        what = f"the environment variable {serve.api_key_env} holds no key of ASCII characters."
        raise UserError(Problem(where="serve.api_key_env", what=what, fix=f"export {serve.api_key_env}=..."))
    return key


def announcement(names: Sequence[str], url: str, key_env: str | None) -> str:
    """Returns how to reach the models: addresses, a curl line and lines for the `openai` client."""
    # Without a temperature clients get 1, and the first answer another than chat's and the report's.
    question = {"model": names[0], "temperature": 0, "messages": [{"role": "user", "content": "Who are you?"}]}
    body = json.dumps(question, ensure_ascii=False).replace(', "messages"', ',\n         "messages"')
    authorization = "" if key_env is None else f' \\\n    -H "Authorization: Bearer ${key_env}"'
    key = '"none"' if key_env is None else f'os.environ["{key_env}"]'
    imports = "from openai import OpenAI" if key_env is None else "import os; from openai import OpenAI"
    return "\n".join(
        (
            f"serving {names[0]} at {url}/v1 (Ctrl+C stops)",
            *(f"    and {name}" for name in names[1:]),
            f"  chat in a browser: {url}/",
            f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json'{authorization} \\",
            f"    -d {shlex.quote(body)}",
            f"  {imports}",
            f'  client = OpenAI(base_url="{url}/v1", api_key={key})',
        )
    )


class _Server(uvicorn.Server):
    """Tells at once that a signal came: nothing has to look for it again and again."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.signalled = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._loop.call_soon_threadsafe(self.signalled.set)


async def _serve(fleet: Fleet, serve: ServeConfig, key: str | None, listener: socket.socket) -> None:
    hosts = _LOOPBACK_NAMES | {serve.host.lower()} if key is None else None
    app = build_app(fleet, serve, key=key, hosts=hosts)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, lifespan="off", http=PatientProtocol,
        ws="none", timeout_graceful_shutdown=_GRACE_SECONDS,
    )  # fmt: skip
    server = _Server(config)
    running = [asyncio.create_task(engine.run()) for engine in fleet.engines]
    listening = asyncio.create_task(server.serve(sockets=[listener]))
    announcing = asyncio.create_task(_announce(fleet, _url(serve.host, listener), serve.api_key_env))
    try:
        await _first_end(server.signalled, [*running, announcing])
    finally:
        announcing.cancel()
        # Ending the engines first ends every stream with an error event, so that no connection is left to wait for.
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        server.should_exit = True
        await listening


async def _first_end(signalled: asyncio.Event, tasks: Sequence[asyncio.Task[None]]) -> None:
    """Waits for a signal; an engine that cannot start, or has another template, ends the wait with its error."""
    signal_came = asyncio.create_task(signalled.wait())
    waiting: set[asyncio.Task[Any]] = {signal_came, *tasks}
    try:
        while not signal_came.done():
            ended, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
    finally:
        signal_came.cancel()


async def _announce(fleet: Fleet, url: str, key_env: str | None) -> None:
    for model in fleet.models.values():
        await model.engine.became_ready.wait()
        assert model.engine.ready is not None
        model.target.chat_template(model.engine.ready)
    print(announcement(list(fleet.models), url, key_env), flush=True)


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio sends small answers at once only on sockets that name their protocol; else Nagle's 40 ms are added.
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _cannot_listen(host, port, error) from error
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise _cannot_listen(host, port, error) from error
        yield listener


def _cannot_listen(host: str, port: int, error: OSError) -> StageError:
    return StageError(f"serve.port: cannot listen on {host}:{port}: {error.strerror}")


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keeps the signals that uvicorn passes on after its own shutdown from ending the process as if by accident."""
    before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _url(host: str, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
