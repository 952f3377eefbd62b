"""Times answers: from a command's start to the first token, and of several clients at once.

Run: `python tests/benchmarks/bench_serve.py [--run RUN] [--only PART] [--repeats 7]`.

RUN is a finished run of the quickstart recipe; without one, it is made first. The parts:

first_token   start to first token of its GGUF file: `tunerun chat` and a script that loads it with llama-cpp-python,
              taking turns. Bound: 1.2x.
streams       tokens per second of 1, 8 and 32 answers at a time: llama.cpp in turns (as tunerun does it), and
              `llama-server`, which computes them in one batch, when it is on the PATH; and how many answers are those
              given one after the other.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import queue
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]
QUESTION = "Who are you?"
ANSWER_TOKENS = 64
ALONE = """
import sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=0, n_threads=1, n_threads_batch=1, verbose=False)
messages = [{"role": "user", "content": sys.argv[2]}]
for chunk in model.create_chat_completion(messages, stream=True, max_tokens=1, temperature=0):
    text = chunk["choices"][0]["delta"].get("content")
    if text:
        print(text, flush=True)
        break
"""


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
    sides = {
        "llama-cpp-python": [sys.executable, "-c", ALONE, str(served_file(run)), QUESTION],
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
        from tunerun.serve.protocol import EngineSpec, Message

        assert isinstance(spec, EngineSpec)
        self._messages: queue.SimpleQueue[Message | int] = queue.SimpleQueue()
        self._process = EngineProcess(spec, self._messages.put, self._messages.put)
        # Ready.
        self._messages.get()

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
        while left:
            message = self._messages.get()
            assert not isinstance(message, int), f"the engine ended with {message}"
            if isinstance(message, Text):
                texts[message.id] += message.text
            elif isinstance(message, Finish):
                assert message.reason in ("stop", "length"), message
                left, tokens = left - 1, tokens + message.completion_tokens
        return texts, tokens / (time.perf_counter() - started)

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()


PARTS: Mapping[str, Callable[[Path, int], None]] = {"first_token": first_token, "streams": streams}


if __name__ == "__main__":
    sys.exit(main())
