"""Runs the gateway and its engine until a signal comes."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from tunerun.config.schema import ServeConfig
from tunerun.errors import Problem, StageError, UserError
from tunerun.network import is_loopback
from tunerun.plan.steps import Placement
from tunerun.serve.gateway import build_app
from tunerun.serve.supervisor import Supervisor
from tunerun.serve.targets import Target

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 3
_BACKLOG = 128
_LOOPBACK_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))


def serve_target(target: Target, serve: ServeConfig, placement: Placement) -> None:
    """Serves a model until SIGINT or SIGTERM, and prints how to reach it once it is ready.

    Args:
        target: What is served.
        serve: Address, key, context and limits.
        placement: Device, precision and threads of the engine.

    Raises:
        UserError: The address or the key is not as it should be, or the run failed its gates.
        StageError: The engine cannot start.
    """
    if target.unverified:
        raise UserError(Problem(where=target.name, what=f"{target.unverified}."))
    if target.unchecked:
        print(f"warning: {target.unchecked}", file=sys.stderr)
    key = read_key(serve)
    with _listening(serve.host, serve.port) as listener, _own_signals():
        asyncio.run(_serve(target, serve, placement, key, listener))


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


def announcement(name: str, url: str, key_env: str | None) -> str:
    """Returns how to reach the model: the address, a curl line and lines for the `openai` client."""
    body = f'{{"model": {_quoted(name)}, "messages": [{{"role": "user", "content": "Who are you?"}}]}}'
    authorization = "" if key_env is None else f' \\\n    -H "Authorization: Bearer ${key_env}"'
    key = '"none"' if key_env is None else f'os.environ["{key_env}"]'
    imports = "from openai import OpenAI" if key_env is None else "import os; from openai import OpenAI"
    return "\n".join(
        (
            f"serving {name} at {url}/v1 (Ctrl+C stops)",
            f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json'{authorization} \\",
            f"    -d {shlex.quote(body)}",
            f"  {imports}",
            f'  client = OpenAI(base_url="{url}/v1", api_key={key})',
        )
    )


async def _serve(
    target: Target, serve: ServeConfig, placement: Placement, key: str | None, listener: socket.socket
) -> None:
    engine = Supervisor(target.spec(placement, serve.context), serve.max_concurrent)
    hosts = _LOOPBACK_NAMES | {serve.host.lower()} if key is None else None
    app = build_app(target, engine, key=key, hosts=hosts)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, lifespan="off",
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )  # fmt: skip
    server = uvicorn.Server(config)
    running = asyncio.create_task(engine.run())
    listening = asyncio.create_task(server.serve(sockets=[listener]))
    announcing = asyncio.create_task(_announce(target, engine, _url(serve.host, listener), serve.api_key_env))
    try:
        await _first_end(server, running, announcing)
    finally:
        announcing.cancel()
        # Ending the engine first ends every stream with an error event, so that no connection is left to wait for.
        running.cancel()
        await asyncio.wait((running,))
        server.should_exit = True
        await listening


async def _first_end(server: uvicorn.Server, running: asyncio.Task[None], announcing: asyncio.Task[None]) -> None:
    """Waits for a signal; an engine that cannot start, or has another template, ends the wait with its error."""
    while not server.should_exit:
        await asyncio.wait((running,), timeout=_POLL_SECONDS)
        for task in (running, announcing):
            if task.done():
                task.result()


async def _announce(target: Target, engine: Supervisor, url: str, key_env: str | None) -> None:
    await engine.became_ready.wait()
    assert engine.ready is not None
    target.chat_template(engine.ready)
    print(announcement(target.name, url, key_env), flush=True)


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


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
