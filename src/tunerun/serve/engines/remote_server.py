"""Servers that other projects ship, started for one engine process and reached by it alone."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx

from tunerun.errors import StageError
from tunerun.network import LOOPBACK, free_port

_LEASH = Path(__file__).with_name("leash.py")
_POLL_SECONDS = 0.2
_PROBE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """Where a server listens."""

    url: str
    key: str
    """Sent as a Bearer token."""
    socket: str | None = None
    """Path of a Unix socket; null for a port of the loopback address."""

    def client(self) -> httpx.Client:
        """Returns a client for short calls."""
        transport = httpx.HTTPTransport(uds=self.socket) if self.socket is not None else None
        return httpx.Client(
            transport=transport, timeout=_PROBE_SECONDS, base_url=self.url, headers=self._headers(), trust_env=False
        )

    async def session(self) -> aiohttp.ClientSession:
        """Returns a client for answers, of which any number may be open and each may take its time.

        Its parser is compiled: a line of a stream takes a third of the CPU time that it takes with httpx.
        """
        # A server may close an idle connection at the moment when it is used again.
        kept: dict[str, Any] = {"force_close": True, "limit": 0}
        connector = aiohttp.TCPConnector(**kept) if self.socket is None else aiohttp.UnixConnector(self.socket, **kept)
        timeout = aiohttp.ClientTimeout(total=None)
        return aiohttp.ClientSession(self.url, connector=connector, timeout=timeout, headers=self._headers())

    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}


def interpreter(python: str | None) -> str:
    """Returns the interpreter that has the server's package: `env.serve.python`, or the one of this process."""
    return sys.executable if python is None else python


def flags(arguments: Mapping[str, Any]) -> list[str]:
    """Writes `serve.extra_args` as a command line: `max_num_seqs: 8` as `--max-num-seqs 8`.

    True is the flag alone, false its negation and null nothing; a list has all its values after the flag, and a mapping
    is JSON.
    """
    line: list[str] = []
    for key, value in arguments.items():
        name = key.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            line.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list | tuple):
            line += [f"--{name}", *map(_written, value)]
        else:
            line += [f"--{name}", _written(value)]
    return line


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@contextmanager
def private_folder() -> Iterator[Path]:
    """Makes a folder that only this user can enter, for a socket and what a server is given in files.

    It is removed when the block fails; else the server that was started there removes it in the end.
    """
    folder = Path(tempfile.mkdtemp(prefix="tunerun-serve-"))
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def socket_endpoint(folder: Path) -> Endpoint:
    """Returns a Unix socket in a private folder: no other user and no web page can reach what listens there."""
    return Endpoint(url="http://engine", key=_key(), socket=str(folder / "socket"))


def _key() -> str:
    """Returns a secret of hexadecimal digits: one that began with a dash would be read as a flag."""
    return secrets.token_hex(32)


def port_endpoint() -> Endpoint:
    """Returns a free port of the loopback address, for servers that know no Unix sockets."""
    return Endpoint(url=f"http://{LOOPBACK}:{free_port()}", key=_key())


class Server:
    """A running server; it ends with this process, however that ends."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], endpoint: Endpoint, folder: Path) -> None:
        """Starts it.

        Args:
            command: Program and arguments.
            variables: Of its environment, besides those of this process.
            endpoint: Where it will listen.
            folder: From `private_folder`; removed when the server ends.

        Raises:
            StageError: The program cannot be run.
        """
        self.endpoint = endpoint
        theirs, self._leash = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(_LEASH), str(theirs), str(folder), *command],
                env={**os.environ, **variables},
                pass_fds=(theirs,),
                stdin=subprocess.DEVNULL,
                # Its own words go where this process's go. Ctrl+C in the terminal is the gateway's to handle.
                stdout=sys.stderr.fileno(),
                # No session: Linux shares the cores among sessions, and where a server keeps all of them busy, those
                # who pass its answers on would wait for hundreds of milliseconds.
                process_group=0,
            )
        finally:
            os.close(theirs)

    def wait_until_healthy(self, path: str) -> None:
        """Waits until a path answers with success, for as long as loading takes.

        Raises:
            StageError: The server ended.
        """
        with self.endpoint.client() as client:
            while self._process.poll() is None:
                try:
                    if client.get(path).is_success:
                        return
                except httpx.TransportError:
                    pass
                time.sleep(_POLL_SECONDS)
        raise StageError(f"the server ended with exit code {self._process.returncode}; what it said stands above.")

    def ask(self, path: str, body: Mapping[str, Any] | None = None, *, seconds: float = _PROBE_SECONDS) -> Any:
        """Returns the JSON that a path answers.

        Args:
            path: Of the server.
            body: What is posted; None gets.
            seconds: How long to wait.

        Raises:
            StageError: It answers with an error, with something else than JSON, or too late.
        """
        method = "GET" if body is None else "POST"
        try:
            with self.endpoint.client() as client:
                answer = client.request(method, path, json=body, timeout=seconds)
                if answer.is_error:
                    raise StageError(f"the server answers {path} with {answer.status_code}: {answer.text}")
                return answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise StageError(f"the server does not answer {path}: {error}") from error

    def wait(self) -> int:
        """Waits for its end and returns its exit code."""
        return self._process.wait()
