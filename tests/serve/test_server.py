from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest

from tests.serve.conftest import NAME, end, launch, start
from tunerun.config.schema import ServeConfig
from tunerun.errors import UserError
from tunerun.serve.server import announcement, read_key


def alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


@pytest.mark.parametrize("how", ["ctrl-c", "terminate", "terminate under load", "kill"])
def test_no_process_outlives_the_server(run_dir, how):
    served = start(run_dir, engine="llamacpp")
    try:
        pids = served.engine_pids()
        assert len(pids) == 1
        lines: list[str] = []
        streaming = threading.Thread(target=stream_into, args=(served, lines))
        if how == "terminate under load":
            streaming.start()
            while not lines:
                time.sleep(0.01)
        if how == "ctrl-c":
            # As a terminal does: to the whole group.
            os.killpg(served.process.pid, signal.SIGINT)
        else:
            served.process.send_signal(signal.SIGKILL if how == "kill" else signal.SIGTERM)
        code = served.process.wait(15)
        assert code == (-signal.SIGKILL if how == "kill" else 0)
        deadline = time.monotonic() + 5
        while any(alive(pid) for pid in pids):
            assert time.monotonic() < deadline, "the engine lives on"
            time.sleep(0.05)
        if how == "terminate under load":
            streaming.join(10)
            assert json.loads(lines[-1])["error"]["code"] == "engine_down"
    finally:
        end(served)


def stream_into(served, lines: list[str]) -> None:
    body = {
        "messages": [{"role": "user", "content": "fox"}],
        "max_tokens": 450,
        "temperature": 0,
        "stream": True,
        "n": 8,
    }
    with (
        served.client() as client,
        client.stream("POST", "/v1/chat/completions", json=body) as reply,
    ):
        for line in reply.iter_lines():
            if line:
                lines.append(line.removeprefix("data: "))


def test_the_lines_that_are_printed_work(run_dir):
    served = start(run_dir, engine="llamacpp")
    try:
        assert all(len(line) <= 100 for line in served.announced.splitlines())
        command = served.announced.partition("  curl ")[2].partition("\n  from")[0]
        if shutil.which("curl"):
            done = subprocess.run(["bash", "-c", f"curl --noproxy '*' -s {command}"], capture_output=True, timeout=60)
            assert json.loads(done.stdout)["model"] == NAME
            again = subprocess.run(["bash", "-c", f"curl --noproxy '*' -s {command}"], capture_output=True, timeout=60)
            assert json.loads(again.stdout)["choices"] == json.loads(done.stdout)["choices"]
        compile(served.announced[served.announced.index("from openai") :].replace("\n  ", "\n"), "announced", "exec")
    finally:
        end(served)


def test_a_key_is_named_and_not_shown():
    text = announcement(["m"], "http://h:1", "MY_KEY")
    assert '"Authorization: Bearer $MY_KEY"' in text
    assert 'os.environ["MY_KEY"]' in text


def test_other_machines_need_a_key(monkeypatch):
    with pytest.raises(UserError, match="api_key_env"):
        read_key(ServeConfig(host="0.0.0.0"))
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(UserError, match="NO_KEY"):
        read_key(ServeConfig(host="0.0.0.0", api_key_env="NO_KEY"))
    monkeypatch.setenv("A_KEY", "secret")
    assert read_key(ServeConfig(host="0.0.0.0", api_key_env="A_KEY")) == "secret"
    for host in ("localhost", "127.0.0.1", "::1"):
        assert read_key(ServeConfig(host=host)) is None


def test_a_port_in_use_is_told(run_dir):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = launch(run_dir, engine="llamacpp", port=taken.getsockname()[1])
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "cannot listen" in errors
    assert "Traceback" not in errors


def test_a_run_that_failed_its_gates_is_not_served(run_dir, tmp_path):
    failed = shutil.copytree(run_dir, tmp_path / "run")
    (failed / "verify").mkdir()
    gates = [{"name": "gguf_f32", "verdict": "fail"}]
    (failed / "verify" / "report.json").write_text(json.dumps({"schema": 1, "passed": False, "gates": gates}))
    process = launch(failed)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "gguf_f32" in errors
