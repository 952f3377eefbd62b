"""vLLM: `vllm serve` in an environment of its own, asked for completions of token ids."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunerun import artifacts
from tunerun.chat.template import load_template
from tunerun.errors import StageError
from tunerun.formats.safetensors import read_table
from tunerun.serve.engines import remote, scores
from tunerun.serve.engines.base import Send, Service
from tunerun.serve.engines.remote import PROBE, Model, Piece
from tunerun.serve.engines.remote_server import Server, flags, interpreter, private_folder, socket_endpoint
from tunerun.serve.protocol import Ability, EngineSpec, Generate

# Its `--max-lora-rank` takes no other numbers (vllm/config/lora.py).
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Weights may fill so much of a GPU; the rest is for keys and values and for computing.
_WEIGHTS_SHARE = 0.7
# Where white space is free and keys may be added, small models go on with them until the answer is cut off.
_JSON_ANSWERS = {"backend": "guidance", "disable_any_whitespace": True, "disable_additional_properties": True}
_CONFIG = "config.json"


def start(spec: EngineSpec, send: Send) -> Service:
    """Starts `vllm serve` and waits until it is ready.

    Raises:
        UserError: The tokenizer cannot be loaded.
        StageError: vLLM cannot load the model, or says other things of it than the model's files.
    """
    model, name = remote.read_model(spec), weights_name(spec)
    with private_folder() as folder:
        endpoint = socket_endpoint(folder)
        server = Server(command(spec, folder, endpoint.socket or ""), _variables(endpoint.key), endpoint, folder)
        server.wait_until_healthy("/health")
        _check(server, (name, *spec.adapters), spec, model)
    return remote.RemoteService(server, VllmApi(name, model), model, send)


def weights_name(spec: EngineSpec) -> str:
    """Returns what the weights without an adapter are called; differs from every adapter's name."""
    name = Path(spec.weights).resolve().name
    while name in spec.adapters:
        name += "-base"
    return name


def command(spec: EngineSpec, folder: Path, socket: str) -> list[str]:
    """Returns the server's command line.

    Args:
        spec: What it loads.
        folder: Takes files that it reads.
        socket: Path that it listens at.

    Raises:
        StageError: vLLM cannot use an adapter as it is.
    """
    line = [interpreter(spec.server.python), "-m", "vllm.entrypoints.cli.main", "serve", spec.weights]
    line += ["--served-model-name", weights_name(spec), "--uds", socket, "--uvicorn-log-level", "warning"]
    # Sampling is as each request says; the model's generation_config.json still names its end tokens.
    line += ["--generation-config", "vllm", "--enable-tokenizer-info-endpoint"]
    line += ["--structured-outputs-config", json.dumps(_JSON_ANSWERS)]
    config = artifacts.read_json(Path(spec.weights) / _CONFIG)
    # A quantised folder names its own type.
    precision = {"bf16": "bfloat16", "fp32": "float32"}[spec.precision]
    line += ["--dtype", "auto" if "quantization_config" in config else precision]
    if spec.context_tokens is not None:
        line += ["--max-model-len", str(spec.context_tokens)]
    if spec.device == "cuda":
        line += ["--tensor-parallel-size", str(_processes(spec, config))]
    if spec.adapters:
        line += _lora(spec.adapters)
    if spec.server.chat_template is not None:
        line += _template(spec, spec.server.chat_template, folder)
    if spec.server.tool_parser is not None:
        line += ["--enable-auto-tool-choice", "--tool-call-parser", spec.server.tool_parser]
    return line + flags(spec.server.extra_args)


def _lora(adapters: Mapping[str, str]) -> list[str]:
    ranks = [_rank(name, Path(folder)) for name, folder in adapters.items()]
    fitting = [rank for rank in _LORA_RANKS if rank >= max(ranks)]
    if not fitting:
        raise StageError(f"vLLM serves adapters of a rank up to {_LORA_RANKS[-1]}, and one has {max(ranks)}. Merge it.")
    modules = [json.dumps({"name": name, "path": folder}) for name, folder in adapters.items()]
    return [
        "--enable-lora", "--max-lora-rank", str(fitting[0]), "--max-loras", str(len(adapters)),
        "--lora-modules", *modules,
    ]  # fmt: skip


def _rank(name: str, folder: Path) -> int:
    """Returns the largest rank of an adapter's layers.

    Raises:
        StageError: vLLM serves no such adapter (vllm/lora/peft_helper.py).
    """
    config = artifacts.read_json(folder / artifacts.ADAPTER_CONFIG)
    refused = [key for key in ("use_dora", "modules_to_save", "lora_bias", "layer_replication") if config.get(key)]
    if refused:
        raise StageError(
            f"{name}: vLLM serves no adapter with {refused[0]}. Serve the merged model: add merge to the stages."
        )
    ranks = [config["r"], *config.get("rank_pattern", {}).values()]
    return int(max(ranks))


def _template(spec: EngineSpec, text: str, folder: Path) -> list[str]:
    """Returns nothing when the model's folder has the template itself, and no other one for tools."""
    own = load_template(Path(spec.weights), {})
    if own is not None and own.text == text and own.tool_text is None:
        return []
    file = folder / "chat_template.jinja"
    file.write_text(text, encoding="utf-8")
    return ["--chat-template", str(file)]


def _processes(spec: EngineSpec, config: Mapping[str, Any]) -> int:
    """Returns how many GPUs share the model: as many as asked for, or the fewest whose memory it fits."""
    if spec.server.processes is not None:
        return spec.server.processes
    heads, gpus = config.get("num_attention_heads", 1), spec.server.gpu_bytes
    possible = [count for count in range(1, len(gpus) + 1) if heads % count == 0]
    size = sum(info.bytes for info in read_table(Path(spec.weights)).values())
    fitting = [count for count in possible if size <= _WEIGHTS_SHARE * count * min(gpus)]
    return fitting[0] if fitting else max(possible, default=1)


def _variables(key: str) -> dict[str, str]:
    # In the environment rather than among the arguments, which every user of the machine can read.
    told = {"VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    # Else it says some hundred lines at each start.
    return told if "VLLM_LOGGING_LEVEL" in os.environ else {**told, "VLLM_LOGGING_LEVEL": "WARNING"}


def _check(server: Server, names: Sequence[str], spec: EngineSpec, model: Model) -> None:
    """Compares what vLLM says of the model with what its files say.

    Raises:
        StageError: Something differs.
    """
    cards = {card["id"]: card for card in server.ask("/v1/models")["data"]}
    missing = sorted(set(names) - set(cards))
    if missing:
        raise StageError(f"vLLM did not load {', '.join(missing)}.")
    context = cards[names[0]]["max_model_len"]
    if context != model.context_tokens:
        raise StageError(f"vLLM serves a context of {context} tokens instead of {model.context_tokens}.")
    asked = {"model": names[0], "prompt": PROBE, "add_special_tokens": False}
    theirs, ours = server.ask("/tokenize", asked)["tokens"], model.encode(PROBE, plain=False)
    if theirs != ours:
        raise StageError(f"vLLM's tokenizer makes {theirs[:8]}... of a text, and the model's own makes {ours[:8]}...")
    reported = server.ask("/tokenizer_info").get("chat_template")
    if spec.server.chat_template is not None and reported != spec.server.chat_template:
        raise StageError(f"vLLM has another chat template than {spec.weights} was trained with.")


class VllmApi:
    """vLLM's /v1/completions (vllm/entrypoints/openai/completion/protocol.py)."""

    abilities: tuple[Ability, ...] = ("seed", "logprobs", "json")

    def __init__(self, name: str, model: Model) -> None:
        """Takes what the weights without an adapter are called, and the model."""
        self._name, self._end_ids = name, model.end_ids
        self._piece = scores.pieces_of(model.tokenizer.backend)

    def question(self, request: Generate, prompt_ids: Sequence[int], limit: int) -> tuple[str, Mapping[str, Any]]:
        """Asks for token ids; stop texts are found here, and end tokens end the answer there."""
        body: dict[str, Any] = {
            "model": request.adapter or self._name,
            "prompt": list(prompt_ids),
            "max_tokens": limit,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
            "stop_token_ids": sorted(self._end_ids),
            "stream": True,
            "return_token_ids": True,
        }
        if request.temperature > 0:
            body["seed"] = request.seed
        if request.logprobs is not None:
            body |= {"logprobs": request.logprobs, "return_tokens_as_token_ids": True}
        if request.json_schema is not None:
            body["response_format"] = _format(request.json_schema)
        return "/v1/completions", body

    def piece(self, line: str, request: Generate) -> Piece | None:
        """Reads a server-sent event."""
        event = remote.read_event(line)
        if event is None:
            return None
        if "error" in event:
            return Piece(failure=str(event["error"]))
        choice = event["choices"][0]
        found = choice.get("logprobs")
        return Piece(
            tokens=tuple(choice.get("token_ids") or ()),
            scores=() if found is None else tuple(self._scores(found, request.logprobs or 0)),
            reason=choice["finish_reason"],
        )

    def _scores(self, found: Mapping[str, Any], count: int) -> list[Mapping[str, Any]]:
        rows = zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True)
        return [
            scores.score(self._piece, _token_id(token), value, _likeliest(top, count)) for token, value, top in rows
        ]


def _likeliest(found: Mapping[str, float], count: int) -> list[tuple[int, float]]:
    """Returns so many tokens; vLLM adds the one that was chosen, when it is not among them."""
    ranked = sorted(found.items(), key=lambda item: -item[1])
    return [(_token_id(written), value) for written, value in ranked[:count]]


def _token_id(written: str) -> int:
    return int(written.removeprefix("token_id:"))


def _format(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if not schema:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
