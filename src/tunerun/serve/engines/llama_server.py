"""llama.cpp's own server, `llama-server`: prompts go there as token ids, and text is streamed back.

It computes several answers in one batch, which is faster than one after the other, and changes the last bits.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from tunerun.chat.tokenizer import Tokenizer, load_tokenizer
from tunerun.errors import StageError
from tunerun.formats.gguf_header import CHAT_TEMPLATE, GgufHeader, read_gguf_header
from tunerun.serve.engines import caches, remote
from tunerun.serve.engines.base import Send, Service
from tunerun.serve.engines.remote import PROBE, Piece
from tunerun.serve.engines.remote_server import Endpoint, Server, flags, port_endpoint, private_folder
from tunerun.serve.engines.schemas import check_size
from tunerun.serve.protocol import Ability, EngineSpec, Generate
from tunerun.serve.text import Decoder, PieceDecoder

PROGRAM = "llama-server"
_TOKENS = "tokenizer.ggml.tokens"
_BOS, _EOS = "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"
_ALL_LAYERS = 999
_ERRORS = 1
# It keeps prompts of the past in memory besides the caches: 8 GiB of them when nothing is said. With adapters none are
# kept, for it takes what one adapter computed for the beginning of another one's answer.
_KEPT_MIB = 512


def start(spec: EngineSpec, send: Send) -> Service:
    """Starts the server and waits until the file is loaded.

    Raises:
        UserError: The file is broken, or the tokenizer cannot be loaded.
        StageError: llama-server cannot load it, or makes other tokens of a text than the model's tokenizer.
    """
    header, endpoint = read_gguf_header(Path(spec.weights)), port_endpoint()
    context = spec.context_tokens or _architecture(header, "context_length")
    if context is None:
        raise StageError(f"{spec.weights}: states no context length. Set serve.context.")
    with private_folder() as folder:
        server = Server(command(spec, endpoint, header, context), _variables(endpoint.key), endpoint, folder)
        server.wait_until_healthy("/health")
        model = ServedFile(endpoint.client(), header, context, spec.stop)
        if spec.tokenizer is not None:
            _check_tokens(model, load_tokenizer(Path(spec.tokenizer)))
    return remote.RemoteService(server, LlamaServerApi(spec), model, send)


def command(spec: EngineSpec, endpoint: Endpoint, header: GgufHeader, context: int) -> list[str]:
    """Returns the server's command line.

    Args:
        spec: What it loads.
        endpoint: Where it listens.
        header: Of the file.
        context: Tokens of one answer with its prompt.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        raise StageError(f"there is no `{PROGRAM}` on the PATH.")
    parallel = caches.slots(_token_numbers(header), caches.HALF_BYTES, context, spec.answers)
    address = httpx.URL(endpoint.url)
    line = [program, "--model", spec.weights, "--host", address.host, "--port", str(address.port)]
    line += ["--parallel", str(parallel), "--ctx-size", str(parallel * context), "--no-kv-unified"]
    line += ["--threads", str(spec.threads), "--n-gpu-layers", str(_ALL_LAYERS if spec.device == "cuda" else 0)]
    line += [
        "--no-webui",
        "--no-slots",
        "--cache-ram",
        str(0 if spec.adapters else _KEPT_MIB),
        "--log-verbosity",
        str(_ERRORS),
    ]
    if spec.adapters:
        line += ["--lora", ",".join(spec.adapters.values()), "--lora-init-without-apply"]
    return line + flags(spec.server.extra_args)


def _variables(key: str) -> dict[str, str]:
    # In the environment rather than among the arguments, which every user of the machine can read.
    return {"LLAMA_API_KEY": key, "LLAMA_ARG_OFFLINE": "1"}


def _check_tokens(model: ServedFile, tokenizer: Tokenizer) -> None:
    theirs = model.encode(PROBE, plain=False)
    ours = tokenizer.encode(PROBE, add_special_tokens=False)
    if theirs != ours:
        what = f"makes {theirs[:8]}... of a text, and the model's own tokenizer makes {ours[:8]}..."
        raise StageError(f"{PROGRAM} {what}")


def _architecture(header: GgufHeader, key: str) -> Any:
    return header.fields.get(f"{header.fields.get('general.architecture')}.{key}")


def _token_numbers(header: GgufHeader) -> int:
    heads = _architecture(header, "attention.head_count_kv") or _architecture(header, "attention.head_count") or 0
    # A list has the heads of each layer.
    layers = heads if isinstance(heads, list) else [heads] * int(_architecture(header, "block_count"))
    width = _architecture(header, "embedding_length") // max(_architecture(header, "attention.head_count") or 1, 1)
    key, value = (_architecture(header, f"attention.{part}_length") or width for part in ("key", "value"))
    return sum(layers) * (int(key) + int(value))


class ServedFile:
    """What is known of a GGUF file that a llama-server has loaded; tokens are asked from it."""

    end_ids: frozenset[int] = frozenset()
    """It ends answers by itself."""

    def __init__(self, client: httpx.Client, header: GgufHeader, context: int, stops: tuple[str, ...]) -> None:
        """Takes a client of the server, the file's header, the context's length and texts that end every answer."""
        self._client, self.context_tokens, self.stops = client, context, stops
        tokens: Sequence[str] = header.fields[_TOKENS]
        self.vocabulary = len(tokens)
        self.chat_template: str | None = header.fields.get(CHAT_TEMPLATE)
        self.bos_token, self.eos_token = (
            "" if number is None else tokens[number] for number in map(header.fields.get, (_BOS, _EOS))
        )

    def encode(self, text: str, *, plain: bool) -> list[int]:
        """Asks for the tokens of a text; `plain` puts the file's start token before it."""
        asked = {"content": text, "add_special": plain, "parse_special": True}
        found: list[int] = self._client.post("/tokenize", json=asked).raise_for_status().json()["tokens"]
        return found

    def decoder(self) -> Decoder:
        """Returns a decoder of nothing: text comes back."""
        return PieceDecoder(lambda _: b"")


class LlamaServerApi:
    """llama-server's /completion (tools/server/README.md of llama.cpp)."""

    # Of the tokens that make up one character it tells the last one only, so that probabilities would have gaps.
    abilities: tuple[Ability, ...] = ("seed", "json")

    def __init__(self, spec: EngineSpec) -> None:
        """Takes what was loaded."""
        self._adapters = tuple(spec.adapters)
        self._stops = spec.stop

    def question(self, request: Generate, prompt_ids: Sequence[int], limit: int) -> tuple[str, Mapping[str, Any]]:
        """Asks for text after token ids.

        Raises:
            ValueError: The JSON schema is too large.
        """
        scales = {index: float(name == request.adapter) for index, name in enumerate(self._adapters)}
        body: dict[str, Any] = {
            "prompt": list(prompt_ids),
            "n_predict": limit,
            "temperature": request.temperature,
            "top_k": request.top_k,
            "top_p": request.top_p,
            "min_p": 0,
            "repeat_penalty": 1.0,
            "seed": request.seed,
            # The order of transformers and vLLM.
            "samplers": ["temperature", "top_k", "top_p"],
            "cache_prompt": not self._adapters,
            # Special tokens have text only when it is asked for.
            "preserved_tokens": [*self._stops, *request.shown],
            # An empty list would mean all of them.
            "lora": [{"id": index, "scale": scale} for index, scale in scales.items()],
            "stream": True,
        }
        if request.json_schema is not None:
            check_size(request.json_schema)
            body["json_schema"] = request.json_schema or {"type": "object"}
        return "/completion", body

    def piece(self, line: str, request: Generate) -> Piece | None:  # noqa: ARG002 (as for every server)
        """Reads a server-sent event."""
        event = remote.read_event(line)
        if event is None:
            return None
        if "error" in event:
            return Piece(failure=str(event["error"]))
        count = event["tokens_predicted"]
        if not event["stop"]:
            # An end token that has a text here, is one that the answer does not count.
            return Piece(text=event["content"], computed=count - (event["content"] in self._stops))
        ended = event["stop_type"] != "limit"
        # The end token is counted there.
        counted = count - 1 if event["stop_type"] == "eos" else count
        return Piece(text=event["content"], computed=counted, reason="stop" if ended else "length")
