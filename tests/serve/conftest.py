"""A finished run with a tiny model, and real servers on it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import ROOT
from tests.tiny import CHATML, tiny_qwen2
from tunerun import artifacts
from tunerun.base_model import BaseModel, write_base
from tunerun.config.schema import GgufConfig, ServeConfig
from tunerun.plan import steps
from tunerun.plan.placement import Placement
from tunerun.plan.steps import ExportStep, ServeStep

NAME = "parrot"
START_SECONDS = 120
# CHATML with a place for tools, so that their rendering can be seen in the number of prompt tokens.
WITH_TOOLS = "{% if tools %}{{ '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{% endif %}" + CHATML


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    process: subprocess.Popen[str]
    announced: str

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, verify=False, **options)

    def engine_pids(self) -> list[int]:
        done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True)
        return [int(line) for line in done.stdout.split()]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(15)


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with merged/ and an exported F32 GGUF; no gate was run."""
    pytest.importorskip("llama_cpp")
    from tunerun.export.stage import run

    run_dir = tmp_path_factory.mktemp("runs") / NAME
    merged = tiny_qwen2(run_dir / artifacts.MERGED, template=WITH_TOOLS)
    write_base(run_dir, BaseModel(folder=merged, path=str(merged), revision=None, sha256="0"))
    write_plan(run_dir, ServeStep(serve=ServeConfig(), placement=Placement()))
    run(ExportStep(name=NAME, merged=True, gguf=GgufConfig(types=("f32",)), chat_template=None), run_dir)
    return run_dir


@pytest.fixture(scope="session")
def sprout_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the shipped model, which calls tools, as merged/ and as an F16 GGUF."""
    pytest.importorskip("llama_cpp")
    from tunerun.export.stage import run

    run_dir = tmp_path_factory.mktemp("runs") / "sprout"
    merged = run_dir / artifacts.MERGED
    shutil.copytree(ROOT / "src" / "tunerun" / "assets" / "sprout", merged)
    write_base(run_dir, BaseModel(folder=merged, path=str(merged), revision=None, sha256="0"))
    write_plan(run_dir, ServeStep(serve=ServeConfig(), placement=Placement()))
    run(ExportStep(name="sprout", merged=True, gguf=GgufConfig(types=("f16",)), chat_template=None), run_dir)
    return run_dir


def write_plan(run_dir: Path, step: ServeStep) -> None:
    artifacts.write_json(run_dir / artifacts.PLAN, {"schema": 1, "name": NAME, "steps": [steps.to_json(step)]})


def start(run_dir: Path, *, environment: dict[str, str] | None = None, **serve: Any) -> Served:
    """Starts the serve stage as the runner does, on a free port, and waits until it is ready."""
    return announced(launch(run_dir, environment=environment, **serve))


def announced(process: subprocess.Popen[str]) -> Served:
    """Waits until a server has told how to reach it."""
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if "api_key=" in line:
            break
    told = "".join(lines)
    found = re.search(r"at (http://\S+)/v1", told)
    assert found, f"the server did not start: {told}{process.communicate()}"
    return Served(found.group(1), process, told)


def launch(run_dir: Path, *, environment: dict[str, str] | None = None, **serve: Any) -> subprocess.Popen[str]:
    write_plan(run_dir, ServeStep(serve=ServeConfig(**{"port": 0, **serve}), placement=Placement()))
    return _process("tunerun.worker", str(run_dir), "serve", environment=environment)


def serve(*arguments: object) -> Served:
    """Runs `tunerun serve` on a free port, and waits until it is ready."""
    return announced(_process("tunerun", "serve", "serve.port=0", *map(str, arguments)))


def _process(module: str, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )


def end(served: Served) -> None:
    if served.process.poll() is None:
        served.process.kill()
    served.process.communicate()


@pytest.fixture(scope="module", params=["llamacpp", "transformers"])
def served(request: pytest.FixtureRequest, run_dir: Path) -> Iterator[Served]:
    """A server of either engine, shared by a module's tests."""
    found = start(run_dir, engine=request.param)
    yield found
    end(found)


@pytest.fixture(scope="module")
def fast(run_dir: Path) -> Iterator[Served]:
    """A llama.cpp server, for what does not depend on the engine."""
    found = start(run_dir, engine="llamacpp")
    yield found
    end(found)
