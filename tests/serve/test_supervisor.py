from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time

import httpx
import pytest

from tests.serve.conftest import NAME, Served, end, launch, start
from tunerun.config.schema import ServeConfig
from tunerun.plan.placement import Placement
from tunerun.serve.fleet import build_fleet
from tunerun.serve.gateway import build_app
from tunerun.serve.supervisor import Supervisor
from tunerun.serve.targets import resolve_target

BODY = {"model": NAME, "messages": [{"role": "user", "content": "fox"}], "temperature": 0, "max_tokens": 450}
RECOVERY_SECONDS = 15
SERVE = ServeConfig()


@pytest.fixture
def own(run_dir):
    served = start(run_dir, engine="llamacpp")
    yield served
    end(served)


@pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_an_engine_killed_under_load_comes_back(own, times):
    with own.client() as client:
        short = {**BODY, "max_tokens": 8}
        before = client.post("/v1/chat/completions", json=short).json()["choices"]
        cut = 0
        for _ in range(times):
            streams, waiting = load(own)
            (pid,) = own.engine_pids()
            os.kill(pid, signal.SIGKILL)
            for thread in waiting:
                thread.join(10)
                assert not thread.is_alive(), "a stream hangs"
            assert len(streams) == 3
            cut += sum("engine_down" in lines[-1] for lines in streams)
            for lines in streams:
                last = lines[-1]
                assert last == "[DONE]" or json.loads(last)["error"]["code"] == "engine_down", last
            statuses = until_ready(client, short)
            assert set(statuses) <= {200, 503}
            assert client.get("/v1/models").status_code == 200
        # A machine may be quick enough to finish the streams of one round before the engine is killed.
        assert cut, "none was cut"
        assert client.post("/v1/chat/completions", json=short).json()["choices"] == before


def load(served: Served) -> tuple[list[list[str]], list[threading.Thread]]:
    """Starts streams and returns when each has sent something."""
    streams: list[list[str]] = []
    begun = threading.Barrier(4)

    def stream() -> None:
        lines: list[str] = []
        with (
            served.client() as client,
            client.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}) as reply,
        ):
            assert reply.status_code == 200
            for line in reply.iter_lines():
                if line:
                    lines.append(line.removeprefix("data: "))
                    if len(lines) == 1:
                        begun.wait(10)
        streams.append(lines)

    threads = [threading.Thread(target=stream) for _ in range(3)]
    for thread in threads:
        thread.start()
    begun.wait(10)
    return streams, threads


def until_ready(client: httpx.Client, body: dict) -> list[int]:
    statuses, deadline = [], time.monotonic() + RECOVERY_SECONDS
    while not statuses or statuses[-1] != 200:
        assert time.monotonic() < deadline, statuses
        reply = client.post("/v1/chat/completions", json=body)
        statuses.append(reply.status_code)
        if reply.status_code == 503:
            assert reply.headers["retry-after"] == "1"
            time.sleep(0.1)
    return statuses


def test_models_are_listed_before_the_engine_is_ready(run_dir):
    app = build_app(build_fleet([resolve_target(run_dir)], SERVE, Placement()), SERVE)

    async def replies() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return [
                await client.get("/v1/models"),
                await client.get("/health"),
                await client.post("/v1/chat/completions", json=BODY),
                await client.post("/v1/completions", json={"prompt": "fox"}),
            ]

    models, health, *asked = asyncio.run(replies())
    assert models.json()["data"][0]["id"] == NAME
    assert (health.status_code, health.json()) == (503, {"status": "starting"})
    assert [(reply.status_code, reply.json()["error"]["code"]) for reply in asked] == [(503, "engine_down")] * 2


def test_a_fault_of_the_server_has_the_shape_of_an_error(run_dir, monkeypatch):
    class Broken(Supervisor):
        async def ask(self, request, seeds):
            raise KeyError("a fault")

    monkeypatch.setattr("tunerun.serve.fleet.Supervisor", Broken)
    app = build_app(build_fleet([resolve_target(run_dir)], SERVE, Placement()), SERVE)

    async def reply() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post("/v1/completions", json={"prompt": "fox"})

    found = asyncio.run(reply())
    assert (found.status_code, found.json()["error"]["type"]) == (500, "server_error")


def test_an_engine_that_stands_still_ends_in_a_timeout(run_dir):
    serve = ServeConfig(request_seconds=0.3)
    fleet = build_fleet([resolve_target(run_dir)], serve, Placement())

    async def replies() -> list[httpx.Response]:
        (engine,) = fleet.engines
        running = asyncio.create_task(engine.run())
        await engine.became_ready.wait()
        transport = httpx.ASGITransport(build_app(fleet, serve))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            # It neither accepts a request, nor goes on with one it has accepted.
            os.kill(engine.engine_pid, signal.SIGSTOP)
            before = await client.post("/v1/completions", json={"prompt": "fox"})
            os.kill(engine.engine_pid, signal.SIGCONT)
            wedge = asyncio.create_task(stop_soon(engine))
            during = await client.post("/v1/chat/completions", json={**BODY, "stream": True})
            await wedge
            os.kill(engine.engine_pid, signal.SIGCONT)
            after = await client.post("/v1/completions", json={"prompt": "fox", "max_tokens": 1})
        running.cancel()
        await asyncio.wait((running,))
        return [before, during, after]

    async def stop_soon(engine: Supervisor) -> None:
        while not engine._open:
            await asyncio.sleep(0)
        await asyncio.sleep(0.02)
        os.kill(engine.engine_pid, signal.SIGSTOP)
        await asyncio.sleep(0.5)

    before, during, after = asyncio.run(replies())
    assert (before.status_code, before.json()["error"]["code"]) == (504, "timeout")
    assert during.status_code in (200, 504)
    assert "timeout" in during.text
    assert after.status_code == 200


def test_a_file_that_is_no_gguf_ends_the_stage_with_its_name(run_dir, tmp_path):
    import shutil

    broken = tmp_path / "run"
    shutil.copytree(run_dir, broken)
    (file,) = (broken / "export").glob("*.gguf")
    for content in (b"not a model", file.read_bytes()[:2000]):
        file.write_bytes(content)
        process = launch(broken, engine="llamacpp")
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert str(file) in errors
        assert "Traceback" not in errors
