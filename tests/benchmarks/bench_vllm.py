"""Times answers of vLLM asked through the gateway and asked directly, taking turns.

Run: `python tests/benchmarks/bench_vllm.py RUN PYTHON [--repeats 5] [--tokens 64]`, where PYTHON is an interpreter with
vLLM and RUN a finished run.

Both ask the same server process for the same continuations of token ids, streamed, one and sixteen at a time. The
gateway passes each token through two more processes, on cores that vLLM wants too: on a machine with few cores that is
the upper bound of what it costs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
PROMPT = [5, 6, 7, 8]
WIDTHS = (1, 16)


def start(run: str, python: str) -> tuple[subprocess.Popen[str], str]:
    """Serves the run; returns the process and the address."""
    command = [sys.executable, "-m", "tunerun", "serve", run, "serve.engine=vllm", f"env.serve.python={python}"]
    command += ["serve.port=0", f"serve.max_concurrent={max(WIDTHS)}"]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, encoding="utf-8")
    assert process.stdout is not None
    found = next(filter(None, (re.search(r"at (http://\S+)/v1", line) for line in process.stdout)))
    return process, found[1]


def vllm_client() -> tuple[httpx.AsyncClient, str]:
    """Returns a client of the server behind the gateway, and the model's name there."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if "vllm.entrypoints.cli.main" in line and "leash.py" not in " ".join(line):
            environ = dict(item.partition("=")[::2] for item in (entry / "environ").read_bytes().decode().split("\0"))
            transport = httpx.AsyncHTTPTransport(uds=line[line.index("--uds") + 1])
            headers = {"authorization": f"Bearer {environ['VLLM_API_KEY']}"}
            client = httpx.AsyncClient(transport=transport, base_url="http://engine", headers=headers, timeout=None)
            return client, line[line.index("--served-model-name") + 1]
    raise SystemExit("there is no vLLM behind the gateway")


async def stream(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[int, float]:
    """Returns how many tokens came, and after how many seconds the first one did."""
    begun, first, tokens = time.perf_counter(), 0.0, 0
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            first = first or time.perf_counter() - begun
            tokens = (json.loads(line[6:]).get("usage") or {}).get("completion_tokens", tokens)
    return tokens, first


async def measure(client: httpx.AsyncClient, body: dict[str, Any], width: int) -> tuple[float, float]:
    """Returns tokens a second of several streams together, and the mean time to the first token."""
    begun = time.perf_counter()
    found = await asyncio.gather(*(stream(client, body) for _ in range(width)))
    return sum(tokens for tokens, _ in found) / (time.perf_counter() - begun), statistics.mean(t for _, t in found)


async def compare(url: str, repeats: int, tokens: int) -> None:
    """Prints the medians of both ways."""
    bare, name = vllm_client()
    async with bare, httpx.AsyncClient(base_url=url, timeout=None, trust_env=False) as gateway:
        asked = {"prompt": PROMPT, "max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True}}
        ways = {
            "vLLM": (bare, {**asked, "model": name, "temperature": 0, "return_token_ids": True}),
            "gateway": (gateway, {**asked, "temperature": 0}),
        }
        for width in WIDTHS:
            speeds: dict[str, list[float]] = {way: [] for way in ways}
            firsts: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(repeats + 1):
                for way, (client, body) in ways.items():
                    speed, first = await measure(client, body, width)
                    speeds[way].append(speed)
                    firsts[way].append(first)
            # The first round warms both up.
            speed = {way: statistics.median(found[1:]) for way, found in speeds.items()}
            first = {way: statistics.median(found[1:]) * 1e3 for way, found in firsts.items()}
            print(
                f"{width} at a time: {speed['vLLM']:.0f} tokens/s from vLLM, {speed['gateway']:.0f} through the gateway"
            )
            print(f"  ratio {speed['gateway'] / speed['vLLM']:.3f}; first token after "
                  f"{first['vLLM']:.1f} ms and {first['gateway']:.1f} ms", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("python")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    process, url = start(options.run, options.python)
    try:
        asyncio.run(compare(url, options.repeats, options.tokens))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


if __name__ == "__main__":
    main()
