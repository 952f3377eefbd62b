"""Ollama: a GGUF file given to a server of its own, asked by text, for its interface takes no token ids."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunerun.errors import StageError
from tunerun.formats.gguf_header import ADD_BOS, CHAT_TEMPLATE, read_gguf_header
from tunerun.formats.modelfile import MODELFILE
from tunerun.serve.engines import remote
from tunerun.serve.engines.base import Send, Service
from tunerun.serve.engines.remote import PROBE, Model, Piece
from tunerun.serve.engines.remote_server import Server, port_endpoint, private_folder
from tunerun.serve.protocol import Ability, EngineSpec, Generate

PROGRAM = "ollama"

_LOAD_SECONDS = 3600


def start(spec: EngineSpec, send: Send) -> Service:
    """Starts `ollama serve`, gives it the file and waits until it is loaded.

    Raises:
        UserError: The tokenizer cannot be loaded.
        StageError: Ollama cannot load the file, or makes other tokens of a text than the model's tokenizer.
    """
    model, endpoint = _read_model(spec), port_endpoint()
    address = endpoint.url.removeprefix("http://")
    with private_folder() as folder:
        server = Server([_program(), "serve"], {"OLLAMA_HOST": address, "OLLAMA_KEEP_ALIVE": "-1"}, endpoint, folder)
        server.wait_until_healthy("/api/version")
        api = OllamaApi(_create(Path(spec.weights), folder, address), spec, model)
        _check(server, api, model)
    return remote.RemoteService(server, api, model, send)


def _read_model(spec: EngineSpec) -> Model:
    if spec.tokenizer is None:
        raise StageError(f"{spec.weights}: Ollama tells no token ids, and the model's own tokenizer is not beside it.")
    header = read_gguf_header(Path(spec.weights), lists=False)
    own = header.fields.get(f"{header.fields.get('general.architecture')}.context_length")
    model = remote.folder_model(Path(spec.tokenizer), spec.context_tokens or own, spec.stop)
    return replace(model, chat_template=header.fields.get(CHAT_TEMPLATE))


def _program() -> str:
    program = shutil.which(PROGRAM)
    if program is None:
        raise StageError(f"there is no `{PROGRAM}` on the PATH.")
    return program


def _create(weights: Path, folder: Path, address: str) -> str:
    """Gives the file to Ollama's store, where it is kept by its hash, and returns the model's name there."""
    name = "tunerun-" + "".join(letter if letter.isalnum() else "-" for letter in weights.stem.lower())
    modelfile = folder / MODELFILE
    modelfile.write_text(f"FROM {weights.resolve()}\n", encoding="utf-8")
    command = [_program(), "create", name, "-f", str(modelfile)]
    environment = {**os.environ, "OLLAMA_HOST": address}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StageError(f"`ollama create` failed: {' '.join((done.stderr or done.stdout).split()[-40:])}")
    return name


def _check(server: Server, api: OllamaApi, model: Model) -> None:
    """Lets Ollama load the file, and compares how many tokens it makes of a text."""
    probe = Generate(
        id=0, adapter=None, prompt=PROBE, plain=True, max_new_tokens=1, temperature=0, top_p=1, top_k=0, seed=0, stop=()
    )
    path, body = api.question(probe, (), 1)
    done = server.ask(path, {**body, "stream": False}, seconds=_LOAD_SECONDS)
    theirs, ours = done["prompt_eval_count"], len(model.encode(PROBE, plain=True))
    if theirs != ours:
        raise StageError(f"Ollama makes {theirs} tokens of a text of which the model's own tokenizer makes {ours}.")


class OllamaApi:
    """Ollama's /api/generate with `raw`, which leaves the prompt as it is (docs/api.md)."""

    abilities: tuple[Ability, ...] = ("seed", "json")

    def __init__(self, name: str, spec: EngineSpec, model: Model) -> None:
        """Takes what the model is called there, and what it was made from."""
        self._name, self._model, self._extra = name, model, spec.server.extra_args
        start = model.tokenizer.named.get("bos_token", "")
        # llama.cpp puts the first token before a text by itself, so that the rendering's own would be a second one.
        self._taken_off = start if read_gguf_header(Path(spec.weights), lists=False).fields.get(ADD_BOS) else ""

    def question(self, request: Generate, prompt_ids: Sequence[int], limit: int) -> tuple[str, Mapping[str, Any]]:
        """Asks for text."""
        text = request.prompt
        if not isinstance(text, str):
            text = self._model.tokenizer.decode(prompt_ids, skip_special_tokens=False)
        options = {
            **self._extra,
            "num_ctx": self._model.context_tokens,
            "num_predict": limit,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
            "seed": request.seed,
            "repeat_penalty": 1.0,
            "stop": [*request.stop, *self._model.stops],
        }
        body = {"model": self._name, "prompt": text.removeprefix(self._taken_off), "raw": True, "options": options}
        if request.json_schema is not None:
            body["format"] = request.json_schema or "json"
        return "/api/generate", body

    def piece(self, line: str, request: Generate) -> Piece | None:  # noqa: ARG002 (as for every server)
        """Reads a line, which is a JSON object."""
        if not line:
            return None
        event = json.loads(line)
        if "error" in event:
            return Piece(failure=str(event["error"]))
        if not event["done"]:
            return Piece(text=event["response"])
        reason = event.get("done_reason", "stop")
        return Piece(text=event["response"], reason=reason, computed=event.get("eval_count"))
