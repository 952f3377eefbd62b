"""LMDeploy: `lmdeploy serve api_server` in an environment of its own, asked to go on from token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from tunerun.errors import StageError
from tunerun.serve.engines import remote
from tunerun.serve.engines.base import Send, Service
from tunerun.serve.engines.remote import Piece
from tunerun.serve.engines.remote_server import Endpoint, Server, flags, interpreter, port_endpoint, private_folder
from tunerun.serve.protocol import Ability, EngineSpec, Generate

_NAME = "model"


def start(spec: EngineSpec, send: Send) -> Service:
    """Starts the server and waits until it is ready.

    Raises:
        UserError: The tokenizer cannot be loaded.
        StageError: LMDeploy cannot load the model.
    """
    model, endpoint = remote.read_model(spec), port_endpoint()
    with private_folder() as folder:
        server = Server(command(spec, endpoint), {"HF_HUB_OFFLINE": "1"}, endpoint, folder)
        server.wait_until_healthy("/health")
        names = [card["id"] for card in server.ask("/v1/models")["data"]]
    if names != [_NAME]:
        raise StageError(f"LMDeploy serves {', '.join(names)}, and not what was asked for.")
    return remote.RemoteService(server, LmdeployApi(model.end_ids), model, send)


def command(spec: EngineSpec, endpoint: Endpoint) -> list[str]:
    """Returns the server's command line."""
    address = httpx.URL(endpoint.url)
    line = [interpreter(spec.server.python), "-m", "lmdeploy", "serve", "api_server", spec.weights]
    line += ["--server-name", address.host, "--server-port", str(address.port), "--api-keys", endpoint.key]
    line += ["--model-name", _NAME]
    if spec.context_tokens is not None:
        line += ["--session-len", str(spec.context_tokens)]
    if spec.server.processes is not None:
        line += ["--tp", str(spec.server.processes)]
    return line + flags(spec.server.extra_args)


class LmdeployApi:
    """LMDeploy's /generate (lmdeploy/serve/openai/endpoints/generate.py), which alone takes token ids."""

    abilities: tuple[Ability, ...] = ()

    def __init__(self, end_ids: frozenset[int]) -> None:
        """Takes the tokens that end an answer."""
        self._end_ids = end_ids

    def question(self, request: Generate, prompt_ids: Sequence[int], limit: int) -> tuple[str, Mapping[str, Any]]:
        """Asks for token ids; there is no seed among its fields, which is why it has not that ability."""
        return "/generate", {
            "input_ids": list(prompt_ids),
            "max_tokens": limit,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
            "stop_token_ids": sorted(self._end_ids),
            "stream": True,
        }

    def piece(self, line: str, request: Generate) -> Piece | None:  # noqa: ARG002 (as for every server)
        """Reads a server-sent event."""
        event = remote.read_event(line)
        if event is None:
            return None
        if "meta_info" not in event:
            return Piece(failure=str(event))
        reason = event["meta_info"].get("finish_reason")
        return Piece(tokens=tuple(event["output_ids"] or ()), reason=None if reason is None else reason["type"])
