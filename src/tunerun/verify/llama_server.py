"""Gate `llama_server`: llama.cpp's own server renders conversations as training does."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from tunerun.chat.faults import ChatFault
from tunerun.chat.template import ChatTemplate
from tunerun.errors import StageError
from tunerun.formats.gguf_header import ADD_BOS, read_gguf_header
from tunerun.network import LOOPBACK, free_port
from tunerun.verify import probes
from tunerun.verify.gates import Gate, text_gate

PROGRAM = "llama-server"
_START_SECONDS = 300
_ADVICE = "Serve the model by tunerun or vLLM, or simplify its chat template."


def server_gate(path: Path, template: ChatTemplate, prompts: tuple[str, ...], start: str | None) -> Gate:
    """Compares the renderings of `llama-server --jinja` with those of training.

    Args:
        path: The GGUF file.
        template: Of training.
        prompts: The user's questions.
        start: Beginning-of-sequence token. llama.cpp takes it off a rendering when the file says to write one.
    """
    name, bound = f"{PROGRAM}:{path.name}", {"different_texts": 0}
    program = shutil.which(PROGRAM)
    if program is None:
        reason = f"{PROGRAM} is not on the PATH"
        return Gate(name=name, measured={}, bound=bound, verdict="not_proved", reason=reason)
    # A server writes today's date where the template asks for it.
    today = replace(template, date=datetime.now())  # noqa: DTZ005 (the server's own calendar day)
    taken_off = start if start is not None and read_gguf_header(path, lists=False).fields.get(ADD_BOS) else ""
    try:
        with _server(program, path) as client:
            compared, faults = _compare(client, today, prompts, taken_off)
    except (StageError, OSError, httpx.TransportError) as error:
        # The other gates say what they found all the same.
        return Gate(name=name, measured={}, bound=bound, verdict="not_proved", reason=str(error))
    return text_gate(name, compared, faults, _ADVICE)


def _compare(
    client: httpx.Client, template: ChatTemplate, prompts: tuple[str, ...], taken_off: str
) -> tuple[int, list[str]]:
    """Returns how many conversations were compared, and what is rendered otherwise."""
    compared, faults = 0, []
    for messages, tools in probes.conversations(prompts):
        try:
            wanted = template.render(messages, tools, generation_prompt=True).removeprefix(taken_off)
        except ChatFault:
            continue
        compared += 1
        found = _apply(client, messages, tools)
        if found != wanted:
            faults.append(f"it renders {found!r} where training renders {wanted!r}.")
    return compared, faults


def _apply(client: httpx.Client, messages: list[dict[str, Any]], tools: list[Any] | None) -> str:
    asked = {"messages": messages, **({"tools": tools} if tools is not None else {})}
    answer = client.post("/apply-template", json=asked)
    if answer.is_error:
        return f"an error: {' '.join(answer.text.split())}"
    prompt: str = answer.json()["prompt"]
    return prompt


@contextlib.contextmanager
def _server(program: str, path: Path) -> Iterator[httpx.Client]:
    port = free_port()
    command = [program, "--model", str(path), "--jinja", "--host", LOOPBACK, "--port", str(port)]
    command += ["--ctx-size", "512", "--no-warmup", "--n-gpu-layers", "0", "--no-webui"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            with httpx.Client(base_url=f"http://{LOOPBACK}:{port}", timeout=60, trust_env=False) as client:
                if not _wait(client, process):
                    log.seek(0)
                    raise StageError(f"{PROGRAM} does not start with {path}: {log.read()[-2000:]}")
                yield client
        finally:
            process.kill()
            process.wait()


def _wait(client: httpx.Client, process: subprocess.Popen[bytes]) -> bool:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if client.get("/health").is_success:
                return True
        time.sleep(0.1)
    return False
