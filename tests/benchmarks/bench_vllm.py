"""Times answers of vLLM asked through the gateway and asked directly, taking turns.

Run: `python tests/benchmarks/bench_vllm.py RUN PYTHON [--repeats 7] [--tokens 200] [--realtime]`, where PYTHON is an
interpreter with vLLM and RUN a finished run.

Both ask the same server process for the same answer, streamed, one and eight at a time, and read the bytes as they
come. The answer is a hot one whose seed is looked for first, so that it has all its tokens: a trained model's own
ends after a few, and what is timed then is the request. The CPU time of each process is told by token.

vLLM keeps two cores busy waiting. On a machine with no more, Linux lets a client of another session wait for hundreds
of milliseconds, whichever way it asks: `--realtime` (as root) measures again with a client that gets its turn at once,
so that only what happens before it is timed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
PROMPT = [5, 6, 7, 8]
WIDTHS = (1, 8)
TEMPERATURE = 2.0
SEEDS = 1000
ROLES = {"VLLM::Worker": "worker", "VLLM::EngineCore": "engine core", "vllm.entrypoints.cli.main": "API server",
         "tunerun.serve.engines.child": "our engine process", "tunerun": "our gateway"}  # fmt: skip


def start(run: str, python: str) -> tuple[subprocess.Popen[str], str]:
    """Serves the run; returns the process and the address."""
    command = [sys.executable, "-m", "tunerun", "serve", run, "serve.engine=vllm", f"env.serve.python={python}"]
    command += ["serve.port=0", f"serve.max_concurrent={max(WIDTHS)}"]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, encoding="utf-8", start_new_session=True
    )
    assert process.stdout is not None
    found = next(filter(None, (re.search(r"at (http://\S+)/v1", line) for line in process.stdout)))
    return process, found[1]


def processes(root: int) -> dict[int, list[str]]:
    """Returns a process and those it started, directly or not, with their command lines."""
    parents, lines = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            lines[int(entry.name)] = (entry / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return {process: lines[process] for process in found}


def roles(root: int) -> dict[int, str]:
    """Returns what the processes do, of those that take part in an answer."""
    found = {os.getpid(): "client"}
    for process, line in processes(root).items():
        said = [role for word, role in ROLES.items() if word in line[:4]]
        if said and not any(part.endswith("leash.py") for part in line):
            found[process] = said[0]
    return found


def vllm_client(root: int) -> tuple[httpx.AsyncClient, str]:
    """Returns a client of the server behind the gateway, and the model's name there."""
    line, process = next(
        (line, process) for process, line in processes(root).items()
        if "vllm.entrypoints.cli.main" in line and not any(part.endswith("leash.py") for part in line)
    )  # fmt: skip
    variables = (Path("/proc") / str(process) / "environ").read_bytes().decode().split("\0")
    key = dict(item.partition("=")[::2] for item in variables)["VLLM_API_KEY"]
    transport = httpx.AsyncHTTPTransport(uds=line[line.index("--uds") + 1])
    headers = {"authorization": f"Bearer {key}"}
    client = httpx.AsyncClient(transport=transport, base_url="http://engine", headers=headers, timeout=None)
    return client, line[line.index("--served-model-name") + 1]


@dataclass(slots=True)
class Found:
    """What was measured of one way."""

    speeds: list[float] = field(default_factory=list)
    """Tokens a second of all streams together."""
    firsts: list[float] = field(default_factory=list)
    """Seconds to the first piece of each stream."""
    tokens: int = 0
    cpu: Counter[str] = field(default_factory=Counter)
    """Seconds by process."""


async def stream(client: httpx.AsyncClient, body: Mapping[str, Any]) -> tuple[int, float]:
    """Returns how many tokens came, and after how many seconds the first ones did."""
    begun, first, read = time.perf_counter(), 0.0, b""
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for piece in response.aiter_raw():
            read += piece
            if not first and b"\ndata: {" in b"\n" + read:
                first = time.perf_counter() - begun
    (usage,) = re.findall(rb'"completion_tokens": ?(\d+)', read)
    return int(usage), first


def cpu_seconds(parts: Mapping[int, str]) -> Counter[str]:
    """Returns what processes have computed, by what they do."""
    found: Counter[str] = Counter()
    for process, role in parts.items():
        values = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        found[role] += (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")
    return found


async def measure(client: httpx.AsyncClient, body: Mapping[str, Any], width: int, parts: Mapping[int, str]) -> Found:
    """Asks for several streams at once."""
    before, begun = cpu_seconds(parts), time.perf_counter()
    streams = await asyncio.gather(*(stream(client, body) for _ in range(width)))
    taken = time.perf_counter() - begun
    tokens = sum(count for count, _ in streams)
    assert tokens == width * body["max_tokens"], "an answer ended early"
    return Found([tokens / taken], [first for _, first in streams], tokens, cpu_seconds(parts) - before)


async def compare(root: int, url: str, repeats: int, tokens: int) -> None:
    """Prints the medians of both ways."""
    bare, name = vllm_client(root)
    async with bare, httpx.AsyncClient(base_url=url, timeout=None, trust_env=False) as gateway:
        asked = {"prompt": PROMPT, "max_tokens": tokens, "temperature": TEMPERATURE, "stream": True,
                 "stream_options": {"include_usage": True}}  # fmt: skip
        for asked["seed"] in range(SEEDS):
            # One without an end token.
            if (await stream(gateway, asked))[0] == tokens:
                break
        ways = {"vLLM": (bare, {**asked, "model": name}), "gateway": (gateway, asked)}
        for width in WIDTHS:
            found = {way: Found() for way in ways}
            for turn in range(repeats + 1):
                for way, (client, body) in ways.items():
                    one = await measure(client, body, width, roles(root))
                    # The first turn warms both up.
                    if turn:
                        add(found[way], one)
            tell(width, found)


def add(found: Found, one: Found) -> None:
    """Adds a turn to those before."""
    found.speeds += one.speeds
    found.firsts += one.firsts
    found.tokens += one.tokens
    found.cpu += one.cpu


def tell(width: int, found: Mapping[str, Found]) -> None:
    """Prints what was measured at one number of streams."""
    speeds = {way: statistics.median(one.speeds) for way, one in found.items()}
    print(f"{width} at a time: ratio {speeds['gateway'] / speeds['vLLM']:.3f}")
    for way, one in found.items():
        spread = f"{min(one.speeds):.0f} to {max(one.speeds):.0f}"
        print(f"  {way}: {speeds[way]:.0f} tokens/s ({spread}), first {statistics.median(one.firsts) * 1e3:.1f} ms")
        used = (f"{role} {1e3 * seconds / one.tokens:.2f}" for role, seconds in one.cpu.most_common())
        print(f"    CPU ms a token: {', '.join(used)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("python")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--realtime", action="store_true")
    options = parser.parse_args()
    process, url = start(options.run, options.python)
    try:
        asyncio.run(compare(process.pid, url, options.repeats, options.tokens))
        if options.realtime:
            print("a client that gets its turn at once:")
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
            asyncio.run(compare(process.pid, url, options.repeats, options.tokens))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


if __name__ == "__main__":
    main()
