"""An OpenAI-compatible endpoint on this machine that answers by rule, and misbehaves when told to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any]], dict[str, Any]]
Fault = Callable[[BaseHTTPRequestHandler], None]


def echo(body: dict[str, Any]) -> dict[str, Any]:
    """Says what was asked last, and with which seed."""
    return said(f"You said: {body['messages'][-1]['content']} ({body.get('seed')})")


def said(text: str | None, reason: str = "stop", **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text, **message}}
    return {"model": "teacher-1", "choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}


def status(code: int, message: str = "no", headers: dict[str, str] | None = None, kind: str | None = None) -> Fault:
    """Answers with an error in OpenAI's shape."""

    def fault(request: BaseHTTPRequestHandler) -> None:
        _send(request, code, json.dumps({"error": {"message": message, "code": kind}}).encode(), headers or {})

    return fault


def raw(data: bytes) -> Fault:
    """Answers 200 with any bytes."""
    return lambda request: _send(request, 200, data, {})


def cut(request: BaseHTTPRequestHandler) -> None:
    """Breaks off in the middle of an answer."""
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b'{"choices": [')
    request.wfile.flush()
    request.connection.close()
    request.close_connection = True


def silent(request: BaseHTTPRequestHandler) -> None:
    """Says nothing for longer than anyone waits."""
    time.sleep(1.0)
    cut(request)


class TeacherServer:
    """The server; `faults` are played one for each request before it answers."""

    def __init__(self, answer: Answer = echo, *, key: str | None = None, names: tuple[str, ...] = ("teacher",)) -> None:
        self.answer, self.key, self.names = answer, key, names
        self.faults: list[Fault] = []
        self.asked: list[dict[str, Any]] = []
        self.agents: set[str] = set()
        self.delay = 0.0
        self.peak = self._open = 0
        self._lock = threading.Lock()
        teacher = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                teacher._list(self)

            def do_POST(self) -> None:
                teacher._complete(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def prompts(self) -> list[str]:
        """What was asked last in each request, in order of arrival."""
        return [body["messages"][-1]["content"] for body in self.asked]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _list(self, request: BaseHTTPRequestHandler) -> None:
        if not self._admits(request):
            return
        data = [{"id": name, "object": "model"} for name in self.names]
        _send(request, 200, json.dumps({"object": "list", "data": data}).encode(), {})

    def _complete(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        self.agents.add(request.headers["User-Agent"])
        if request.path != "/v1/chat/completions":
            status(404, "Not Found")(request)
            return
        if not self._admits(request):
            return
        with self._lock:
            self.asked.append(body)
            self._open += 1
            self.peak = max(self.peak, self._open)
            fault = self.faults.pop(0) if self.faults else None
        try:
            time.sleep(self.delay)
            if fault is not None:
                fault(request)
            elif body["model"] not in self.names:
                status(404, f"The model {body['model']} does not exist", kind="model_not_found")(request)
            else:
                _send(request, 200, json.dumps(self.answer(body)).encode(), {})
        finally:
            with self._lock:
                self._open -= 1

    def _admits(self, request: BaseHTTPRequestHandler) -> bool:
        given = request.headers.get("Authorization")
        if self.key is None or given == f"Bearer {self.key}":
            return True
        status(401, f"Incorrect API key provided: {given}")(request)
        return False


def _send(request: BaseHTTPRequestHandler, code: int, data: bytes, headers: dict[str, str]) -> None:
    request.send_response(code)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
        request.send_header(name, value)
    request.end_headers()
    try:
        request.wfile.write(data)
    except (BrokenPipeError, ConnectionResetError):
        # Who asked was stopped.
        request.close_connection = True
