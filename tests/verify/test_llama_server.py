"""llama-server's renderings are compared when there is one; the stand-in renders by Jinja and counts as llama.cpp."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.tiny import CHATML
from tunerun.chat.template import ChatTemplate
from tunerun.errors import StageError
from tunerun.verify.llama_server import server_gate

TEMPLATE = ChatTemplate(text="<s>" + CHATML, tool_text=None, variables={}, source="test")
PROGRAM = """#!{python}
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
sys.path.insert(0, "{src}")
from tunerun.chat.faults import ChatFault
from tunerun.chat.template import ChatTemplate
{before}
template = ChatTemplate(text={text!r}, tool_text=None, variables={{}}, source="")
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(200, {{"status": "ok"}})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            prompt = template.render(asked["messages"], asked.get("tools"), generation_prompt=True)
        except ChatFault as fault:
            return self.answer(400, {{"error": str(fault)}})
        self.answer(200, {{"prompt": prompt}})
    def answer(self, status, data):
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments):
        pass
port = int(sys.argv[sys.argv.index("--port") + 1])
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def install(folder: Path, patch: pytest.MonkeyPatch, text: str, before: str = "") -> None:
    program = folder / "llama-server"
    program.write_text(PROGRAM.format(python=sys.executable, src=ROOT / "src", text=text, before=before))
    program.chmod(0o755)
    patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_the_same_rendering_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, CHATML)
    gate = server_gate(tmp_path / "m.gguf", TEMPLATE, ("Who are you?",), "<s>")
    assert (gate.verdict, gate.name) == ("pass", "llama-server:m.gguf")
    assert gate.measured["texts"] >= 50


def test_another_rendering_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, CHATML.replace("assistant", "helper"))
    gate = server_gate(tmp_path / "m.gguf", TEMPLATE, (), "<s>")
    assert gate.verdict == "fail"
    assert "helper" in gate.reason


def test_without_a_server_nothing_is_proved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    gate = server_gate(tmp_path / "m.gguf", TEMPLATE, (), "<s>")
    assert gate.verdict == "not_proved"
    assert "no llama-server on the PATH" in gate.reason


def test_a_server_that_dies_is_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, CHATML, before='sys.exit("error: no backend")')
    with pytest.raises(StageError, match="no backend"):
        server_gate(tmp_path / "m.gguf", TEMPLATE, (), "<s>")
