"""The steps of a plan: frozen values that say all a stage needs to know.

A stage is `run(step, out) -> list[Artifact]`, where `out` is the run directory. Files that stages hand to each other
have fixed names there (`tunerun.artifacts`), so a step holds only choices. Everything a step holds is part of its
fingerprint unless `step_keys.UNFINGERPRINTED` names it.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from tunerun.config import typed
from tunerun.config.data_sources import data_paths, data_sources
from tunerun.config.schema import (
    AnswerConfig,
    AwqConfig,
    Bnb4Config,
    BoundConfig,
    DataConfig,
    EngineChoice,
    EvalConfig,
    Fp8Config,
    GgufConfig,
    GgufType,
    GptqConfig,
    MethodConfig,
    ModelConfig,
    ObjectiveConfig,
    PublishConfig,
    Published,
    QuantisedForm,
    ServeConfig,
    SourceConfig,
    TrackConfig,
    TrainConfig,
)
from tunerun.fits import Fit
from tunerun.paths import looks_local
from tunerun.plan.placement import Placement

VERIFY_PROBES = 16
"""Texts that verify makes up to compare models on, at most."""
VERIFY_ROWS: Mapping[str, int] = {"quick": 4, "full": 32}
"""Rows of the data that it compares models on besides, at most, by `verify.level`."""
VERIFY_TOKENS = 256
"""Tokens of such a text, at most."""
VERIFY_PROMPTS, VERIFY_ANSWER_TOKENS = 20, 32
"""Prompts that the answers of unquantised files are compared on, and tokens of an answer."""
VERIFY_SERVED_ANSWERS, VERIFY_SERVED_TOKENS = 3, 8
"""Answers that a served run is asked for, and tokens of one, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantisation:
    """How bitsandbytes holds the linear layers of a frozen base."""

    bits: Literal[4, 8]
    """NF4, or int8 with one scale for each row."""
    double: bool
    """With 4 bits, whether the scales are quantised too."""


def quantisation_of(method: MethodConfig) -> Quantisation | None:
    """Returns how a method holds the base while it trains."""
    return Quantisation(bits=method.bits, double=method.double_quant) if method.kind == "qlora" else None


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelStep:
    """Finds or downloads the base model and records what it is: writes model.json."""

    stage: ClassVar[str] = "model"
    model: ModelConfig
    cache_dir: str | None
    """Folder for downloads; null takes the hub's own."""
    weights: bool
    """Whether the weights are needed, or only the tokenizer and the config."""
    sha256: str | None = None
    """What the weights have to hash to; null takes any."""
    teacher: str | None = None
    """Model that distill imitates: its weights are found or downloaded too."""
    teacher_sha256: str | None = None
    """What the teacher's files have to hash to; null takes any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerStep:
    """Lets a teacher answer prompts: writes answer/answers.jsonl."""

    stage: ClassVar[str] = "answer"
    answer: AnswerConfig
    vars: Mapping[str, str]
    """Values for placeholders in the prompts."""
    on_bad_rows: Literal["fail", "drop"]
    """Whether a malformed prompt fails the run."""
    hub: Literal["hf", "modelscope"]
    """Where the ids of data sets are looked up."""
    seed: int
    cache_dir: str | None = None
    """Folder for downloads; null takes the hub's own."""
    journal: str | None = None
    """Journal of another run, whose answers are taken over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataStep:
    """Turns rows into a token store: writes data/."""

    stage: ClassVar[str] = "data"
    data: DataConfig
    objective: ObjectiveConfig
    chat_template: str | None
    """Name or file that replaces the model's own template."""
    seed: int
    cache_dir: str | None = None
    """Folder for downloads; null takes the hub's own."""
    answers: bool = False
    """Whether the answers of the run's teacher are trained on, beside other sources where there are any."""

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """What is trained on, each source with its settings filled in."""
        return data_sources(self.data)

    @property
    def eval_source(self) -> SourceConfig | None:
        """What is evaluated on beside them, in full: `max_rows` is for a quick try of training."""
        if not self.data.eval_path:
            return None
        return data_sources(replace(self.data, path=self.data.eval_path, sources={}, max_rows=None))[0]

    @property
    def hub_paths(self) -> tuple[str, ...]:
        """Data sets that a hub has to be asked for."""
        return tuple(path for _, path in data_paths(self.data) if not looks_local(path))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainStep:
    """Trains: writes adapter/ (adapter methods) or merged/ (full), checkpoints/ and metrics.jsonl."""

    stage: ClassVar[str] = "train"
    model: ModelConfig
    objective: ObjectiveConfig
    method: MethodConfig
    train: TrainConfig
    eval: EvalConfig
    track: TrackConfig
    name: str
    """Of the run, for trackers."""
    placement: Placement
    micro_batch_size: int
    """Rows each process computes at a time."""
    accumulation_steps: int
    """Micro-batches in an optimiser step."""
    activation_checkpointing: bool
    max_shard_size_bytes: int
    """Largest weights file written by full training."""
    seed: int
    allow: tuple[str, ...] = ()
    """Keys, or sections of keys, that may differ from those of the checkpoint that training goes on from."""
    fits: tuple[Fit, ...] = ()
    """What the run that is replayed found to fit into memory, in order; empty when it was what its plan said."""
    flops_per_token: float | None = None
    """Operations of a trained token, without what is computed twice; null when the model's shape is unknown."""
    compile: bool = False
    """Whether each decoder layer is compiled."""
    device_flops: float | None = None
    """Peak of one process's device, operations in a second; null when the device is unknown."""
    deepspeed: Mapping[str, Any] = field(default_factory=dict)
    """DeepSpeed's config; empty where it is not used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalStep:
    """Measures loss and answers prompts, base and tuned: writes eval/report.json."""

    stage: ClassVar[str] = "eval"
    model: ModelConfig
    eval: EvalConfig
    adapter: str | None
    """Adapter of the tuned model: a folder in the run directory, or an absolute path."""
    tuned: str | None
    """Folder of a fully trained model in the run directory, instead of an adapter."""
    chat: bool
    """Whether prompts are asked through the chat template, or continued as plain text."""
    placement: Placement
    seed: int
    quantisation: Quantisation | None = None
    """What the base's linear layers went through in training and in merged/; null when they are the original ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeStep:
    """Folds an adapter into the base model: writes merged/."""

    stage: ClassVar[str] = "merge"
    adapter: str
    """Folder in the run directory, or an absolute path."""
    chat_template: str | None
    """Name or file that replaces the model's own template in the merged folder."""
    max_shard_size_bytes: int
    quantisation: Quantisation | None = None
    """What the base's linear layers go through first, as in training; null takes the original ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportStep:
    """Writes what is deployed: export/."""

    stage: ClassVar[str] = "export"
    name: str
    """First part of the file names."""
    merged: bool
    """Whether merged/ is exported, or the base model itself."""
    gguf: GgufConfig
    chat_template: str | None
    """Name or file that replaces the base model's own template; merged/ already has it."""
    adapter: str | None = None
    """Folder in the run directory, or an absolute path; merged in passing when merged/ is not there."""
    quantisation: Quantisation | None = None
    """What the base goes through before it is merged in passing."""
    system: str | None = None
    """System prompt that servers give conversations without one."""
    bnb4: Bnb4Config | None = None
    """A folder of 4-bit weights; null writes none."""
    gptq: GptqConfig | None = None
    """A folder of calibrated weights, made of merged/; null writes none."""
    awq: AwqConfig | None = None
    """A folder of calibrated weights of 4 bits, made of merged/; null writes none."""
    fp8: Fp8Config | None = None
    """A folder of weights of 8 bits, made of merged/; null writes none."""
    python: str | None = None
    """Interpreter with the quantisers' libraries; null takes tunerun's own."""
    max_shard_size_bytes: int = 5 * 10**9
    """Largest weights file of export/bnb4."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyStep:
    """Compares tokens and logits across every hand-off: writes verify/report.json."""

    stage: ClassVar[str] = "verify"
    level: Literal["quick", "full"]
    adapter: str | None
    """Folder in the run directory, or an absolute path; null when neither merged/ nor export/ has it."""
    merged: bool
    """Whether merged/ exists."""
    gguf_types: tuple[GgufType, ...]
    """GGUF files in export/ to compare."""
    gguf_adapter: bool = False
    """Whether the adapter lies in export/ as a GGUF file, which is looked through."""
    folders: tuple[Literal["bnb4", "gptq", "awq", "fp8"], ...] = ()
    """Folders in export/ to compare."""
    chat: bool
    """Whether the model is used through a chat template."""
    chat_template: str | None
    """Name or file that replaced the base model's own template."""
    prompts: tuple[str, ...]
    placement: Placement
    seed: int
    quantisation: Quantisation | None = None
    """What the base's linear layers went through in training and in merged/; null when they are the original ones."""
    engines: tuple[EngineChoice, ...] = ()
    """What the run is served by, to see whether the tokens of training arrive."""
    python: str | None = None
    """Interpreter that has an engine's server; null takes tunerun's own."""
    serve_keys: Mapping[EngineChoice, tuple[str, ...]] = field(default_factory=dict)
    """Of engines that are started with more than their name: `key=value` arguments of `tunerun serve`."""
    bounds: Mapping[QuantisedForm, BoundConfig] = field(default_factory=dict)
    """What forms of the model are held to instead of tunerun's own bounds."""

    @property
    def rows(self) -> int:
        """Texts that models are compared on, at most."""
        return VERIFY_PROBES + VERIFY_ROWS[self.level]

    def bound(self, form: QuantisedForm) -> BoundConfig:
        """Returns what a form of the model is held to."""
        return self.bounds[form] if form in self.bounds else BoundConfig()

    @property
    def continued(self) -> tuple[GgufType, ...]:
        """GGUF types whose answers are compared token by token: unquantised ones."""
        return tuple(kind for kind in self.gguf_types if self.level == "full" and kind in ("f32", "f16", "bf16"))


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishStep:
    """Uploads what the run made to a hub, or gives it to Ollama: writes publish/report.json."""

    stage: ClassVar[str] = "publish"
    publish: PublishConfig
    name: str
    """Of the run."""
    artifacts: tuple[Published, ...]
    """What is uploaded; empty takes what the run directory has."""
    secret_variables: tuple[str, ...] = ()
    """Environment variables whose values no uploaded file may hold, whatever they are called."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeStep:
    """Serves what the run made until it is stopped."""

    stage: ClassVar[str] = "serve"
    serve: ServeConfig
    placement: Placement
    python: str | None = None
    """Interpreter with vLLM or LMDeploy; null takes tunerun's own."""
    gpu_bytes: tuple[int, ...] = ()
    """Memory of each visible GPU."""


Step = (
    ModelStep
    | AnswerStep
    | DataStep
    | TrainStep
    | EvalStep
    | MergeStep
    | ExportStep
    | VerifyStep
    | PublishStep
    | ServeStep
)

STEP_TYPES: dict[str, type[Step]] = {kind.stage: kind for kind in typing.get_args(Step)}

# What a step needs, by stage: it runs again when one of these did.
INPUTS: dict[str, tuple[str, ...]] = {
    "model": (),
    "answer": (),
    "data": ("model", "answer"),
    "train": ("model", "data"),
    "eval": ("model", "data", "train"),
    "merge": ("model", "train"),
    "export": ("model", "data", "train", "merge"),
    "verify": ("model", "data", "train", "merge", "export"),
    "publish": ("model", "train", "eval", "merge", "export", "verify"),
    "serve": ("model", "merge", "export"),
}


def secret_variables(step: Step) -> tuple[str, ...]:
    """Returns the environment variables that hold secrets, whatever they are called, and that a step reads."""
    if isinstance(step, PublishStep):
        return step.secret_variables
    named = None
    if isinstance(step, AnswerStep):
        named = step.answer.api_key_env
    elif isinstance(step, ServeStep):
        named = step.serve.api_key_env
    return () if named is None else (named,)


def to_json(step: Step) -> dict[str, Any]:
    """Turns a step into plain data."""
    return {"stage": step.stage, **typed.plain(step)}


def from_json(data: Mapping[str, Any]) -> Step:
    """Builds a step from plain data.

    Raises:
        ValueError: The data does not describe a step of this version.
    """
    fields = {key: value for key, value in data.items() if key != "stage"}
    step, problems = typed.build(STEP_TYPES[data["stage"]], fields, data["stage"])
    if step is None or problems:
        raise ValueError("\n".join(str(problem) for problem in problems))
    return step
