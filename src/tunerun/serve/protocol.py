"""What the gateway and an engine process say to each other: one JSON object a line over a socket pair.

    gateway -> engine   EngineSpec, once; then Generate, Cancel, Tokenize
    engine  -> gateway  Ready or Failed, once; then for each Generate: Refused, or Accepted, Text ..., Finish;
                        for each Tokenize: Tokens

Every request has a number, so that messages of several may interleave.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tunerun.config.schema.kinds import Batching
from tunerun.plan.steps import Quantisation

EngineName = Literal["llamacpp", "transformers", "vllm", "lmdeploy", "ollama", "llama_server"]
Ability = Literal["seed", "logprobs", "json"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """What engines that are servers of their own are started with."""

    python: str | None = None
    """Interpreter of the environment that has the server; null takes this one."""
    processes: int | None = None
    """GPUs that share the model; null takes as few as hold it."""
    gpu_bytes: tuple[int, ...] = ()
    """Memory of each visible GPU."""
    chat_template: str | None = None
    """Jinja source that the model was trained with."""
    tool_parser: str | None = None
    """How the model writes tool calls, as vLLM names it."""
    extra_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the server that tunerun has no key for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSpec:
    """What an engine process loads."""

    engine: EngineName
    weights: str
    """A GGUF file, or a model folder."""
    adapters: Mapping[str, str]
    """Folders of PEFT adapters on top of the weights, by the names that requests give."""
    tokenizer: str | None
    """Folder with tokenizer.json; null takes the tokenizer inside the GGUF file."""
    context_tokens: int | None
    """Prompt and answer together; null takes the model's own."""
    stop: tuple[str, ...]
    """Texts that end every answer, besides the model's own end tokens."""
    threads: int
    """CPU threads."""
    device: str = "cpu"
    precision: Literal["bf16", "fp32"] = "fp32"
    quantisation: Quantisation | None = None
    """How bitsandbytes holds the linear layers of a model folder; null leaves them as they are."""
    batching: Batching = "single"
    """How the transformers engine computes several answers."""
    answers: int | None = None
    """Most answers that are asked for at a time; null when that is not known. vLLM, LMDeploy and Ollama decide it."""
    server: ServerSettings = ServerSettings()


@dataclass(frozen=True, kw_only=True, slots=True)
class Generate:
    """Asks for an answer."""

    id: int
    adapter: str | None
    """Name of the adapter that answers; null asks the weights themselves."""
    prompt: str | tuple[int, ...]
    """Text, in which special tokens are recognised, or token ids."""
    plain: bool
    """Whether the text is plain and takes the tokenizer's own start token; a rendered template has its own."""
    max_new_tokens: int | None
    """Longest answer; null fills the context."""
    room: int | None = None
    """Tokens that the context must hold besides the prompt, where the answer may end sooner than `max_new_tokens` for
    lack of it; null asks for all of them."""
    temperature: float
    """0 takes the likeliest token."""
    top_p: float
    top_k: int
    """0 keeps all tokens."""
    seed: int
    """From 0 to 2**32 - 1."""
    stop: tuple[str, ...]
    """Texts that end the answer and are not part of it."""
    logprobs: int | None = None
    """How many of the likeliest tokens are told with each token of the answer; null tells no probabilities at all."""
    json_schema: Mapping[str, Any] | None = None
    """JSON schema that the answer must follow; an empty one asks for any JSON."""
    shown: tuple[str, ...] = ()
    """Special tokens that are part of the answer's text; others have none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenize:
    """Asks for the tokens that a prompt would become."""

    id: int
    prompt: str
    plain: bool
    """As in `Generate`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """The tokens of a prompt."""

    id: int
    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cancel:
    """Nobody waits for the answer any more."""

    id: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """The model is loaded."""

    context_tokens: int
    chat_template: str | None
    """Jinja source inside a GGUF file; null when the engine knows none."""
    bos_token: str
    eos_token: str
    abilities: tuple[Ability, ...] = ()
    """What the engine can do besides answering."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """The model cannot be loaded; the process ends."""

    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepted:
    """The request is queued."""

    id: int
    prompt_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """The request cannot be answered as it is."""

    id: int
    code: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """The next piece of an answer: whole characters."""

    id: int
    text: str
    scores: tuple[Mapping[str, Any], ...] = ()
    """For each token of the piece, when asked for: `token`, `bytes`, `logprob` (nats) and `top_logprobs`, a list of
    the same without the list, as OpenAI has them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finish:
    """The answer is over."""

    id: int
    reason: Literal["stop", "length", "cancelled", "error"]
    completion_tokens: int
    """Tokens of the answer, without the end token."""
    message: str = ""
    """What went wrong, when the reason is `error`."""


Message = Generate | Tokenize | Tokens | Cancel | Ready | Failed | Accepted | Refused | Text | Finish

_KINDS: dict[str, type[Message]] = {
    kind.__name__: kind for kind in (Generate, Tokenize, Tokens, Cancel, Ready, Failed, Accepted, Refused, Text, Finish)
}
_FIELDS = {kind: tuple(item.name for item in dataclasses.fields(kind)) for kind in _KINDS.values()}
_TUPLES = ("abilities", "gpu_bytes", "ids", "prompt", "scores", "shown", "stop")


def encode(message: Message) -> bytes:
    """Turns a message into its line."""
    kind = type(message)
    fields = {name: getattr(message, name) for name in _FIELDS[kind]}
    return json.dumps({"kind": kind.__name__, **fields}).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Turns a line into its message; the other side is this same code."""
    fields = _tupled(json.loads(line))
    return _KINDS[fields.pop("kind")](**fields)


def encode_spec(spec: EngineSpec) -> bytes:
    """Turns a spec into its line, the first that an engine process reads."""
    return json.dumps(dataclasses.asdict(spec)).encode() + b"\n"


def decode_spec(line: bytes) -> EngineSpec:
    """Turns a line into its spec."""
    fields = _tupled(json.loads(line))
    quantisation = None if fields["quantisation"] is None else Quantisation(**fields["quantisation"])
    server = ServerSettings(**_tupled(fields["server"]))
    return EngineSpec(**fields | {"quantisation": quantisation, "server": server})


def _tupled(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if key in _TUPLES and isinstance(value, list) else value for key, value in fields.items()}
