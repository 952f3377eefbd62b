"""vLLM's own environment, a finished run, and `tunerun serve` on it with vLLM."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Without compiling it starts in half the time.
FASTER = "serve.extra_args.enforce_eager=true"
ANNOUNCED = re.compile(r"serving (\S+) at (http://\S+)/v1")


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """An interpreter with vLLM: TUNERUN_VLLM_PYTHON, or one in the user's cache that is made once."""
    named = os.environ.get("TUNERUN_VLLM_PYTHON")
    if named is not None:
        return named
    # The test session's own cache is emptied at its end.
    cache = Path(os.environ.get("HOME", "/root")) / ".cache" / "tunerun" / "vllm"
    if not (cache / ".ready").exists():
        environment = {**os.environ, "PYTHON": sys.executable}
        script = str(ROOT / "tests" / "vllm" / "setup.sh")
        done = subprocess.run([script, str(cache)], capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            pytest.skip(f"vLLM for the CPU could not be installed: {done.stderr[-500:]}")
    return str(cache / "bin" / "python")


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's run, not verified."""
    folder = tmp_path_factory.mktemp("quickstart")
    run = folder / "run"
    command = [sys.executable, "-m", "tunerun", "+recipe=quickstart", f"run_dir={run}"]
    command += ["stages=[data,train,merge,export]", "export.gguf.types=[f16]"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return run


@dataclass(frozen=True)
class Served:
    """A running endpoint."""

    name: str
    url: str
    process: subprocess.Popen[str]
    log: Path


@contextmanager
def serving(*arguments: object, log: Path, python: str) -> Iterator[Served]:
    """Runs `tunerun serve` until the block ends."""
    command = [sys.executable, "-m", "tunerun", "serve", *map(str, arguments), "serve.engine=vllm", "serve.port=0"]
    command += [f"env.serve.python={python}", FASTER]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ, "PYTHONPATH": str(ROOT / "src")}
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=stream, encoding="utf-8", start_new_session=True
        )
    assert process.stdout is not None
    try:
        found = next(filter(None, map(ANNOUNCED.search, process.stdout)), None)
        assert found is not None, log.read_text(encoding="utf-8")
        yield Served(found[1], found[2], process, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
