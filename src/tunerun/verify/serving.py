"""Gates `serving:ENGINE`: what `tunerun serve` gives the engine are the tokens of training.

The endpoint is started as a user starts it, on a free port of the loopback address, and asked over HTTP.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from tunerun import servers
from tunerun.chat.faults import ChatFault
from tunerun.chat.template import ChatTemplate
from tunerun.chat.tokenizer import Tokenizer
from tunerun.errors import StageError
from tunerun.plan.steps import VERIFY_SERVED_ANSWERS, VERIFY_SERVED_TOKENS
from tunerun.verify import probes
from tunerun.verify.gates import Gate
from tunerun.verify.tokens import ADVICE

NAME = "serving"
_ANNOUNCED = re.compile(r"serving \S+ at (http://\S+)/v1")
_PACKAGES = {"llamacpp": "llama_cpp"}
_STOP_SECONDS = 15
_TOO_LONG = "context_length_exceeded"
_SAID_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class Trained:
    """How the training side turns conversations into tokens."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    """None for plain text."""
    prompts: Sequence[str]
    """The user's questions."""

    def probes(self) -> Iterator[tuple[dict[str, Any], list[int] | None]]:
        """Yields bodies for /tokenize, and the tokens that should come back; None where the template refuses."""
        if self.template is None:
            for text in probes.texts(None, self.prompts):
                assert text is not None
                yield {"prompt": text}, self.tokenizer.encode(text, add_special_tokens=True)
            return
        # A server writes today's date where the template asks for it.
        today = replace(self.template, date=datetime.now())  # noqa: DTZ005 (the server's own calendar day)
        for messages, tools in probes.conversations(self.prompts):
            asked = {"messages": messages, **({} if tools is None else {"tools": tools})}
            try:
                text = today.render(messages, tools, generation_prompt=True)
            except ChatFault:
                yield asked, None
            else:
                yield asked, self.tokenizer.encode(text, add_special_tokens=False)


def serving_gate(engine: str, run: Path, trained: Trained, python: str | None, keys: Sequence[str] = ()) -> Gate:
    """Serves the run by an engine and compares the tokens of conversations with those of training.

    Args:
        engine: As `serve.engine` names it.
        run: The run directory.
        trained: The training side.
        python: Interpreter that has the engine's server, where it is one.
        keys: Further arguments of `tunerun serve`.
    """
    name, bound = f"{NAME}:{engine}", {"different_texts": 0}
    absent = _absent(engine, python)
    if absent is not None:
        return Gate(name=name, measured={}, bound=bound, verdict="not_proved", reason=absent)
    try:
        with _endpoint(engine, run, python, keys) as client:
            measured, faults = _compare(client, trained)
    except (StageError, httpx.HTTPError) as error:
        reason = f"the run cannot be served: {error}"
        return Gate(name=name, measured={}, bound=bound, verdict="fail", reason=reason)
    if faults:
        return Gate(name=name, measured=measured, bound=bound, verdict="fail", reason=f"{faults[0]} {ADVICE}")
    if not measured["texts"]:
        reason = "the template refuses every conversation it was tried on"
        return Gate(name=name, measured=measured, bound=bound, verdict="not_proved", reason=reason)
    return Gate(name=name, measured=measured, bound=bound, verdict="pass", reason="")


def _absent(engine: str, python: str | None) -> str | None:
    package = _PACKAGES.get(engine)
    if package is not None and not servers.has_package(package, None):
        return f"{package} is not installed"
    problem = servers.missing(engine, python)
    return None if problem is None else problem.what.rstrip(".")


def _compare(client: httpx.Client, trained: Trained) -> tuple[dict[str, int], list[str]]:
    """Returns what was compared, and what the endpoint does otherwise."""
    compared, answered, faults = 0, 0, []
    for asked, wanted in trained.probes():
        found = _tokens(client, asked)
        compared += wanted is not None
        if found != wanted:
            faults.append(_fault(asked, found, wanted))
        elif wanted is not None and answered < VERIFY_SERVED_ANSWERS:
            answer = _answer_faults(client, asked, len(wanted))
            answered += answer is not None
            faults += answer or []
    measured = {"texts": compared, "different_texts": len(faults), "answers": answered}
    return measured, faults


def _tokens(client: httpx.Client, asked: dict[str, Any]) -> list[int] | None:
    """Returns the tokens that the engine would see; None where the endpoint refuses the conversation."""
    answer = client.post("/tokenize", json=asked)
    if answer.status_code == httpx.codes.BAD_REQUEST:
        return None
    found: list[int] = answer.raise_for_status().json()["tokens"]
    return found


def _answer_faults(client: httpx.Client, asked: dict[str, Any], tokens: int) -> list[str] | None:
    """Asks for a short answer, whose usage counts the tokens that were computed; None where the context has no room."""
    path = "/v1/completions" if "prompt" in asked else "/v1/chat/completions"
    answer = client.post(path, json={**asked, "max_tokens": VERIFY_SERVED_TOKENS, "temperature": 0})
    if answer.is_error:
        if answer.status_code == httpx.codes.BAD_REQUEST and answer.json()["error"]["code"] == _TOO_LONG:
            return None
        return [f"{asked!r} gets no answer: {' '.join(answer.text.split())}."]
    found = answer.json()["usage"]["prompt_tokens"]
    return [] if found == tokens else [f"{asked!r} is answered on {found} tokens where training has {tokens}."]


def _fault(asked: dict[str, Any], found: list[int] | None, wanted: list[int] | None) -> str:
    text = asked["prompt"] if "prompt" in asked else asked["messages"][-1]["content"]
    if found is None or wanted is None:
        return f"{text!r} is {'refused' if found is None else 'accepted'} where training does not."
    pairs = enumerate(zip(found, wanted, strict=False))
    place = next((index for index, (left, right) in pairs if left != right), min(len(found), len(wanted)))
    theirs, ours = found[place : place + 3], wanted[place : place + 3]
    return f"{text!r} is asked as {theirs} at token {place} where training has {ours}."


@contextlib.contextmanager
def _endpoint(engine: str, run: Path, python: str | None, keys: Sequence[str]) -> Iterator[httpx.Client]:
    """Starts the endpoint, and ends it.

    Raises:
        StageError: It does not start; has what it said.
    """
    # A path with an equals sign would be taken for a key.
    command = [sys.executable, "-P", "-m", "tunerun", "serve", ".", "--force", "--names", "model"]
    command += [f"serve.engine={engine}", "serve.port=0", *keys]
    if python is not None:
        command.append(f"env.serve.python={Path(shutil.which(python) or python).absolute()}")
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command, cwd=run, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, encoding="utf-8"
        )
        try:
            url = _announced(process)
            if url is None:
                log.seek(0)
                raise StageError(log.read().strip()[-_SAID_CHARACTERS:])
            with httpx.Client(base_url=url, timeout=None, trust_env=False) as client:
                yield client
        finally:
            _stop(process)


def _announced(process: subprocess.Popen[str]) -> str | None:
    """Waits until the endpoint says where it is; None when it ends without."""
    assert process.stdout is not None
    for line in process.stdout:
        found = _ANNOUNCED.search(line)
        if found is not None:
            return found[1]
    return None


def _stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
