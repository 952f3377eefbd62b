"""llama-server's renderings are compared when there is one; the stand-in renders by Jinja and counts as llama.cpp."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.tiny import CHATML, tiny_qwen2
from tests.verify.runs import export
from tunerun import artifacts
from tunerun.chat.template import ChatTemplate, load_template
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.verify.llama_server import server_gate

# CHATML with a place for tools.
WITH_TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\\n' }}{% for tool in tools %}{{ tool.function.name }} {% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endif %}" + CHATML
)
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


def write_gguf(path: Path, *, adds_start: bool = True) -> Path:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_add_bos_token(adds_start)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def install(folder: Path, patch: pytest.MonkeyPatch, text: str, before: str = "") -> None:
    program = folder / "llama-server"
    program.write_text(PROGRAM.format(python=sys.executable, src=ROOT / "src", text=text, before=before))
    program.chmod(0o755)
    patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_the_same_rendering_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, CHATML)
    gate = server_gate(write_gguf(tmp_path / "m.gguf"), TEMPLATE, ("Who are you?",), "<s>")
    assert (gate.verdict, gate.name) == ("pass", "llama-server:m.gguf")
    assert gate.measured["texts"] >= 50


def test_a_start_token_that_the_file_does_not_write_stays_in_the_rendering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "m.gguf", adds_start=False)
    install(tmp_path, monkeypatch, "<s>" + CHATML)
    assert server_gate(path, TEMPLATE, (), "<s>").verdict == "pass"
    install(tmp_path, monkeypatch, CHATML)
    assert server_gate(path, TEMPLATE, (), "<s>").verdict == "fail"


def test_another_rendering_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, CHATML.replace("assistant", "helper"))
    gate = server_gate(write_gguf(tmp_path / "m.gguf"), TEMPLATE, (), "<s>")
    assert gate.verdict == "fail"
    assert "helper" in gate.reason


def test_without_a_server_nothing_is_proved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    gate = server_gate(write_gguf(tmp_path / "m.gguf"), TEMPLATE, (), "<s>")
    assert gate.verdict == "not_proved"
    assert "llama-server is not on the PATH" in gate.reason


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_real_server_renders_as_training_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds llama-server when there is none, which takes some minutes, and keeps it in the user's cache."""
    program = shutil.which("llama-server") or built_server()
    monkeypatch.setenv("PATH", f"{Path(program).parent}:{os.environ['PATH']}")
    folder = tiny_qwen2(tmp_path / artifacts.MERGED, template=WITH_TOOLS, hidden_size=256, intermediate_size=256)
    export(tmp_path, ("f16",))
    template = load_template(folder, load_tokenizer(folder).named)
    assert template is not None
    gate = server_gate(tmp_path / artifacts.EXPORT / "tiny-f16.gguf", template, ("Who are you?",), None)
    assert gate.verdict == "pass", gate.reason
    assert gate.measured["texts"] >= 50
    other = replace(template, text=WITH_TOOLS.replace("assistant", "helper"))
    assert server_gate(tmp_path / artifacts.EXPORT / "tiny-f16.gguf", other, (), None).verdict == "fail"


def built_server() -> str:
    # The test session's own cache is emptied at its end.
    home = {name: value for name, value in os.environ.items() if name != "XDG_CACHE_HOME"}
    script = str(ROOT / "tests" / "build_llama_server.sh")
    done = subprocess.run([script], capture_output=True, text=True, env={**home, "PYTHON": sys.executable}, check=False)
    if done.returncode:
        pytest.skip(f"llama-server could not be built: {done.stderr[-500:]}")
    return done.stdout.strip()


def test_a_server_that_does_not_start_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, CHATML, before='sys.exit("error: no backend")')
    gate = server_gate(write_gguf(tmp_path / "m.gguf"), TEMPLATE, (), "<s>")
    assert gate.verdict == "not_proved"
    assert "llama-server does not start" in gate.reason
    assert "no backend" in gate.reason


def test_a_template_that_refuses_everything_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, CHATML)
    refuses = replace(TEMPLATE, text="{{ raise_exception('no') }}")
    gate = server_gate(write_gguf(tmp_path / "m.gguf"), refuses, ("Who are you?",), "<s>")
    assert (gate.verdict, gate.measured["texts"]) == ("not_proved", 0)
    assert "refuses every conversation" in gate.reason
