"""Times answers: from a command's start to the first token, and of several clients at once.

Run: `python tests/benchmarks/bench_serve.py [--run RUN] [--only PART] [--repeats 7]`.

RUN is a finished run of the quickstart recipe, or a GGUF file; without one, the run is made first. The parts:

first_token   start to first token of its GGUF file: `tunerun chat` and a script that loads it with llama-cpp-python,
              taking turns. Bound: 1.2x.
streams       tokens per second of 1, 8 and 32 answers at a time: llama.cpp in turns (as tunerun does it), and
              `llama-server`, which computes them in one batch, when it is on the PATH; and how many answers are those
              given one after the other.
gateway       what the gateway adds to the bare engine process, taking turns: to a request of one token (bound: 2 ms),
              and to a stream's tokens per second from its first text on (bound: 3 %) and from the request on.
"""

from __future__ import annotations

import argparse
import dataclasses
import http.client
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]
QUESTION = "Who are you?"
ANSWER_TOKENS = 64
# Of the part `gateway`: hot, so that an answer may be long.
TEMPERATURE = 2.0
STREAM_TOKENS = 256
REQUESTS = 30
IDLE_SECONDS = 2.0
ALONE = """
import sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=0, n_threads=int(sys.argv[3]), n_threads_batch=int(sys.argv[3]), verbose=False)
messages = [{"role": "user", "content": sys.argv[2]}]
for chunk in model.create_chat_completion(messages, stream=True, max_tokens=1, temperature=0):
    text = chunk["choices"][0]["delta"].get("content")
    if text:
        print(text, flush=True)
        break
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Stream:
    """How long an answer took."""

    first: float
    """Seconds until its first text."""
    seconds: float
    tokens: int

    def rate(self) -> float:
        """Returns tokens a second."""
        return self.tokens / self.seconds

    def flow(self) -> float:
        """Returns tokens a second after the first text."""
        return (self.tokens - 1) / (self.seconds - self.first)


def main() -> int:
    """Runs the parts and prints what they measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = options.run or quickstart(Path(scratch) / "run")
        for name, part in PARTS.items():
            if options.only in (None, name):
                part(run, options.repeats)
    return 0


def quickstart(run: Path) -> Path:
    """Makes the run."""
    command = [sys.executable, "-m", "tunerun", "+recipe=quickstart", f"run_dir={run}"]
    subprocess.run(command, check=True, env=environment(), stdout=subprocess.DEVNULL)
    return run


def environment() -> dict[str, str]:
    """Returns the environment of the commands."""
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}


def served_file(run: Path) -> Path:
    """Returns the GGUF file that the run is served by."""
    from tunerun.serve.targets import resolve_target

    return resolve_target(run, engine="llamacpp").weights


def first_token(run: Path, repeats: int) -> None:
    """Prints the seconds from a command's start to the first token."""
    from tunerun.commands.target import placement

    threads = str(placement().threads)
    sides = {
        "llama-cpp-python": [sys.executable, "-c", ALONE, str(served_file(run)), QUESTION, threads],
        "tunerun chat": [sys.executable, "-m", "tunerun", "chat", str(run), "--max-new-tokens", "1"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, command in sides.items():
            found = _seconds_to_output(command)
            # The first turn fills the caches of the disk.
            if turn:
                seconds[name].append(found)
    alone, chat = (statistics.median(found) for found in seconds.values())
    ratios = sorted(mine / other for other, mine in zip(*seconds.values(), strict=True))
    print(f"start to first token of {served_file(run).name}, median of {repeats}:")
    print(f"  llama-cpp-python {alone:.3f} s, tunerun chat {chat:.3f} s: {chat / alone:.2f}x (bound 1.2x)")
    print(f"  ratios of the turns: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


def _seconds_to_output(command: list[str]) -> float:
    started = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment()
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{QUESTION}\n".encode())
        process.stdin.close()
        first = process.stdout.read(1)
        taken = time.perf_counter() - started
        process.stdout.read()
    assert first, f"{command[:4]} said nothing"
    assert process.returncode == 0, f"{command[:4]} ended with {process.returncode}"
    return taken


def streams(run: Path, repeats: int) -> None:
    """Prints the tokens per second of several answers at a time."""
    from tunerun.serve.protocol import EngineName, EngineSpec

    engines: tuple[EngineName, ...] = ("llamacpp", "llama_server") if shutil.which("llama-server") else ("llamacpp",)
    spec = EngineSpec(
        engine="llamacpp",
        weights=str(served_file(run)),
        adapters={},
        tokenizer=None,
        context_tokens=512,
        stop=(),
        threads=1,
    )
    for engine in engines:
        with Clients(dataclasses.replace(spec, engine=engine)) as clients:
            serial = {number: clients.ask([number])[0][number] for number in range(32)}
            for count in (1, 8, 32):
                rates, same = [], 0
                for _ in range(repeats):
                    texts, rate = clients.ask(range(count))
                    rates.append(rate)
                    same = sum(texts[number] == serial[number] for number in texts)
                rate = statistics.median(rates)
                print(f"{engine}, {count} streams: {rate:.0f} tokens/s; {same} of {count} answers as when alone")


class Clients:
    """An engine process, and what comes back of several requests."""

    def __init__(self, spec: object) -> None:
        """Starts it."""
        from tunerun.serve.process import EngineProcess
        from tunerun.serve.protocol import EngineSpec

        assert isinstance(spec, EngineSpec)
        self._process = EngineProcess(spec)
        # Ready.
        next(self._messages())

    def ask(self, numbers: range | list[int]) -> tuple[Mapping[int, str], float]:
        """Asks at once; returns the answers, and how many tokens of them were computed in a second."""
        from tunerun.serve.protocol import Finish, Generate, Text

        texts, tokens, left = dict.fromkeys(numbers, ""), 0, len(numbers)
        started = time.perf_counter()
        for number in numbers:
            prompt = f"<|im_start|>user\n{number}: {QUESTION}<|im_end|>\n<|im_start|>assistant\n"
            self._process.send(
                Generate(
                    id=number, adapter=None, prompt=prompt, plain=False, max_new_tokens=ANSWER_TOKENS, temperature=0,
                    top_p=1, top_k=0, seed=0, stop=(),
                )
            )  # fmt: skip
        for message in self._messages():
            if isinstance(message, Text):
                texts[message.id] += message.text
            elif isinstance(message, Finish):
                assert message.reason in ("stop", "length"), message
                left, tokens = left - 1, tokens + message.completion_tokens
            if not left:
                break
        return texts, tokens / (time.perf_counter() - started)

    def stream(self, tokens: int, seed: int) -> Stream:
        """Returns how long an answer takes as `gateway` asks for it."""
        from tunerun.serve.protocol import Finish, Generate, Text

        started = time.perf_counter()
        self._process.send(
            Generate(
                id=0, adapter=None, prompt=QUESTION, plain=True, max_new_tokens=tokens, temperature=TEMPERATURE,
                top_p=1, top_k=0, seed=seed, stop=(),
            )
        )  # fmt: skip
        first = None
        for message in self._messages():
            if first is None and isinstance(message, Text):
                first = time.perf_counter() - started
            if isinstance(message, Finish):
                assert first is not None, "an answer without text"
                return Stream(first, time.perf_counter() - started, message.completion_tokens)
        raise AssertionError("unreachable: `_messages` has no end")

    def _messages(self) -> Iterator[object]:
        while (messages := self._process.read()) is not None:
            yield from messages
        raise SystemExit(f"the engine ended with {self._process.wait()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()


def gateway(run: Path, repeats: int) -> None:
    """Prints the milliseconds that the gateway adds to a request, and what it takes from a stream."""
    from tunerun.commands import target
    from tunerun.serve.targets import resolve_target

    file = served_file(run)
    spec = resolve_target(file).spec(target.placement(), None)
    with Clients(spec) as bare, _served(file) as (port, pid):
        asking = _HttpClient(port)
        # One without an end token.
        seed = next(seed for seed in range(1000) if bare.stream(STREAM_TOKENS, seed).tokens == STREAM_TOKENS)
        asking.stream(STREAM_TOKENS, seed)
        used = [_cpu_seconds(pid)]
        requests = [(bare.stream(1, seed).seconds, asking.request(seed)) for _ in range(REQUESTS * repeats)]
        used.append(_cpu_seconds(pid))
        streams = [(bare.stream(STREAM_TOKENS, seed), asking.stream(STREAM_TOKENS, seed)) for _ in range(5 * repeats)]
        used.append(_cpu_seconds(pid))
    assert all(mine.tokens == other.tokens for other, mine in streams), "the answers differ"
    alone, through = (1000 * statistics.median(turn[side] for turn in requests) for side in (0, 1))
    print(f"a request of one token, medians of {len(requests)}: bare {alone:.2f} ms,", end=" ")
    print(f"through the gateway {through:.2f} ms: {through - alone:+.2f} ms (bound 2 ms)")
    print(f"a stream of {STREAM_TOKENS} tokens, medians of {len(streams)}:")
    for name, rate in (("from its first text on", Stream.flow), ("from the request on", Stream.rate)):
        alone, through = (statistics.median(rate(turn[side]) for turn in streams) for side in (0, 1))
        lost = statistics.median(1 - rate(mine) / rate(other) for other, mine in streams)
        print(
            f"  {name}: bare {alone:.0f} tokens/s, through the gateway {through:.0f}: {100 * lost:.1f} % less", end=""
        )
        print(" (bound 3 %)" if rate is Stream.flow else "")
    request, token = (used[1] - used[0]) / len(requests), (used[2] - used[1]) / sum(mine.tokens for _, mine in streams)
    print(f"CPU time of the gateway's own process: {1000 * request:.2f} ms a request, {1e6 * token:.0f} us a token")


def _cpu_seconds(pid: int) -> float:
    """Returns what a process has computed, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _served(file: Path) -> Iterator[tuple[int, int]]:
    """Runs the gateway on a file; yields its port and process id."""
    command = [sys.executable, "-m", "tunerun", "serve", str(file), "serve.port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None
        try:
            found = re.search(r":(\d+)/v1", process.stdout.readline())
            assert found, "the server did not start"
            yield int(found[1]), process.pid
        finally:
            process.terminate()


class _HttpClient:
    """Asks the gateway over one connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._asked = 0.0

    def request(self, seed: int) -> float:
        """Returns the seconds of an answer of one token."""
        started = time.perf_counter()
        self._post(1, seed, stream=False).read()
        return time.perf_counter() - started

    def stream(self, tokens: int, seed: int) -> Stream:
        """Returns how long an answer takes that is streamed."""
        started, first, last = time.perf_counter(), None, b""
        for line in self._post(tokens, seed, stream=True):
            if line.startswith(b"data: {"):
                first, last = first or time.perf_counter() - started, line
        assert first is not None, "an answer without text"
        return Stream(first, time.perf_counter() - started, json.loads(last[6:])["usage"]["completion_tokens"])

    def _post(self, tokens: int, seed: int, *, stream: bool) -> http.client.HTTPResponse:
        body: dict[str, Any] = {"prompt": QUESTION, "max_tokens": tokens, "temperature": TEMPERATURE, "seed": seed}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        # The server gives up a connection that says nothing for seconds, while the other side has its turn.
        if time.monotonic() - self._asked > IDLE_SECONDS:
            self._connection.close()
        self._asked = time.monotonic()
        self._connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        response = self._connection.getresponse()
        assert response.status == 200, response.read()
        return response


PARTS: Mapping[str, Callable[[Path, int], None]] = {"first_token": first_token, "streams": streams, "gateway": gateway}


if __name__ == "__main__":
    sys.exit(main())
