"""Every key a user can set: its type, default, unit and meaning, and nowhere else.

One flat frozen dataclass for each section. The string below a field is its documentation: `conf/README.md` and error
messages are made from it. A key that only some kinds of its section use names them with `used_by`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Stage = Literal["data", "train", "eval", "merge", "export", "verify", "publish", "serve"]
ObjectiveKind = Literal["sft", "pretrain", "dpo", "orpo", "simpo", "kto", "reward", "distill"]
MethodKind = Literal["full", "freeze", "lora", "dora", "rslora", "pissa", "lora_plus", "qlora"]
Strategy = Literal["single", "ddp", "zero1", "zero2", "zero3", "fsdp2"]
GgufType = Literal[
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_0", "q5_1", "q4_k_m", "q4_k_s", "q4_0", "q4_1",
    "iq4_nl", "iq4_xs", "q3_k_l", "q3_k_m", "q3_k_s", "iq3_m", "iq3_s", "q2_k", "tq2_0", "tq1_0",
    "iq3_xs", "iq3_xxs", "q2_k_s", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s",
]  # fmt: skip
DataFormat = Literal["auto", "alpaca", "sharegpt", "messages", "xtuner", "columns", "text"]

ADAPTER_METHODS = ("lora", "dora", "rslora", "pissa", "lora_plus", "qlora")


def used_by(*kinds: str, default: Any) -> Any:
    """Declares a field that only some kinds of its section read."""
    return field(default=default, metadata={"kinds": kinds})


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeConfig:
    """The sizes of a model, so that a plan needs no download; a local folder's config.json goes before them."""

    architecture: str | None = None
    """Class name in the model's config.json, such as `Qwen2ForCausalLM`."""
    layers: int | None = None
    """Number of decoder layers."""
    hidden: int | None = None
    """Width of the residual stream."""
    intermediate: int | None = None
    """Width inside the feed-forward block."""
    heads: int | None = None
    """Number of query heads."""
    kv_heads: int | None = None
    """Number of key and value heads."""
    head_dim: int | None = None
    """Width of one head; hidden / heads when null."""
    vocabulary: int | None = None
    """Rows of the embedding matrix."""
    tied_embeddings: bool = False
    """Whether the output layer shares the embedding matrix."""
    attention_bias: bool = False
    """Whether the query, key and value projections have a bias."""
    context: int | None = None
    """Longest sequence the model was made for, in tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which weights to start from."""

    path: str | None = None
    """Local folder, hub id (`org/name`) or shipped model (`tunerun://sprout`)."""
    hub: Literal["hf", "modelscope"] = "hf"
    """Where a hub id is looked up."""
    revision: str | None = None
    """Commit, tag or branch on the hub; the commit it resolves to is recorded."""
    adapter: str | None = None
    """Folder of an existing adapter: continued by train; merged and exported when train is not among the stages."""
    chat_template: str | None = None
    """Name of a shipped chat template (`chatml`) or a Jinja file, used instead of the model's own."""
    init: Literal["pretrained", "random"] = "pretrained"
    """`random` starts from seeded random weights in the shape of the folder's config.json."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""
    shape: ShapeConfig = ShapeConfig()
    """Sizes for the estimates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """One of several sources that are mixed."""

    path: tuple[str, ...] = ()
    """File, folder, hub id, or list of these."""
    weight: float = 1.0
    """Times each row is in an epoch: 0.5 takes half of the rows, chosen by hash, 2 takes each twice."""
    format: DataFormat | None = None
    """How rows are read; `data.format` when null."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Column of each part; `data.columns` when empty."""
    sheet: str | None = None
    """Sheet of a workbook; `data.sheet` when null."""
    system: str | None = None
    """System prompt for rows that have none; `data.system` when null."""
    max_rows: int | None = None
    """Use only the first rows; `data.max_rows` when null."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which rows to train on, and how they become tokens."""

    path: tuple[str, ...] = ()
    """File, folder, hub id of a data set (`org/name`, `org/name@revision:config:split`), or list of these."""
    sources: Mapping[str, SourceConfig] = field(default_factory=dict)
    """Several sources by a name of your own, each with its settings, instead of `path`."""
    format: DataFormat = "auto"
    """How rows are read; `auto` looks at the first rows."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Column of each part (system, user, assistant, text, chosen, rejected, label) by its name, in a workbook also by
    its letter: `{user: question, assistant: D}`."""
    sheet: str | None = None
    """Sheet of a workbook (.xlsx); null takes the only one that has rows."""
    vars: Mapping[str, str] = field(default_factory=dict)
    """Values for `{{name}}`-style placeholders in the rows."""
    system: str | None = None
    """System prompt for rows that have none."""
    system_override: bool = False
    """Whether `system` replaces the rows' own system prompts too."""
    streaming: bool = False
    """Read a hub's data set row by row as it comes, keeping no copy; `max_rows` says how much of it."""
    eval_path: tuple[str, ...] = ()
    """Rows to evaluate on, kept apart; replaces `eval_fraction` and `eval_rows`."""
    eval_fraction: float = 0.0
    """Share of each source held out for evaluation, 0 to 0.5; chosen by hash, so stable when rows are appended."""
    eval_rows: int | None = None
    """Number of rows held out instead of a share, spread over the sources in proportion."""
    drop_duplicates: bool = False
    """Leave out rows that were there before, and training rows that are among the evaluation rows."""
    max_rows: int | None = None
    """Use only the first rows of the data, for a quick try."""
    max_length: int = 2048
    """Longest row, in tokens."""
    too_long: Literal["truncate_prompt", "truncate", "drop", "split", "fail"] = "truncate_prompt"
    """A longer row: cut the middle of its longest prompt texts, cut its end, drop it, make several rows of it, or fail
    the run."""
    multi_turn: Literal["whole", "split"] = "whole"
    """`split` makes each assistant turn a row of its own, rendered as it will be served."""
    train_on: Literal["assistant", "last", "all"] = "assistant"
    """Which tokens are learned: all assistant turns, the last one only, or every token."""
    packing: bool = False
    """Put several short rows into one of `max_length`; they do not attend to each other."""
    on_bad_rows: Literal["fail", "drop"] = "fail"
    """Whether a malformed row fails the run or is dropped and counted."""
    max_dropped_fraction: float = 0.01
    """Share of rows that may be dropped before the run fails all the same."""
    cache: bool = True
    """Keep the prepared data in the user's cache, where later runs with the same data and settings find them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """What is learned."""

    kind: ObjectiveKind = "sft"
    """The loss and the data it needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodConfig:
    """Which weights move."""

    kind: MethodKind = "lora"
    """How the trainable weights are chosen."""
    rank: int = used_by(*ADAPTER_METHODS, default=16)
    """Rank of the update matrices, >= 1."""
    alpha: float = used_by(*ADAPTER_METHODS, default=32.0)
    """Scale of the update: alpha / rank (rslora: alpha / sqrt(rank))."""
    dropout: float = used_by(*ADAPTER_METHODS, default=0.0)
    """Share of the adapter's inputs zeroed while training, 0 to 1."""
    target_modules: tuple[str, ...] = used_by(*ADAPTER_METHODS, default=("all-linear",))
    """Names of the adapted modules, or `all-linear` for every linear layer but the head."""
    modules_to_save: tuple[str, ...] = used_by(*ADAPTER_METHODS, default=())
    """Modules trained in full and kept in the adapter, such as `embed_tokens`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How the weights move."""

    epochs: float = 1.0
    """Passes over the data, when `max_steps` is null."""
    max_steps: int | None = None
    """Number of optimiser steps."""
    global_batch_size: int = 16
    """Samples in an optimiser step over all processes; rows of `data.max_length` when packed."""
    micro_batch_size: int | None = None
    """Samples a process computes at a time; null lets the plan choose."""
    learning_rate: float = 2e-4
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after the warm-up."""
    min_learning_rate_fraction: float = 0.0
    """Where cosine and linear end, as a share of the peak."""
    warmup_fraction: float = 0.03
    """Share of the steps in which the learning rate rises from zero."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay; not applied to biases and norms."""
    adam_beta1: float = 0.9
    """AdamW's first-moment decay."""
    adam_beta2: float = 0.999
    """AdamW's second-moment decay."""
    max_grad_norm: float | None = 1.0
    """Gradients are scaled down to this L2 norm; null turns clipping off."""
    activation_checkpointing: bool | None = None
    """Recompute activations to save memory; null lets the plan decide by its estimate."""
    checkpoint_steps: int | None = None
    """Write a resumable checkpoint every so many steps; null writes one only when stopped by a signal."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints kept."""
    eval_steps: int | None = None
    """Measure the loss on the held-out rows every so many steps; null measures it in the eval stage only."""
    log_steps: int = 1
    """Write metrics every so many steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HardwareConfig:
    """What to compute on."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes CUDA GPUs when there are any."""
    gpu: str | None = None
    """Plan for this device (`h200`, `a100-80g`, `rtx4090`, ...) instead of the machine's own."""
    strategy: Strategy = "single"
    """How several processes share the model."""
    processes: int | None = None
    """Number of training processes on a node; null takes one for each visible GPU (1 for `single`)."""
    offload: bool = used_by("zero2", "zero3", "fsdp2", default=False)
    """Keep optimiser state (zero3, fsdp2: parameters too) in host memory."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the computation; `auto` is bf16 on GPUs that have it, fp32 elsewhere."""
    threads: int | None = None
    """CPU threads for each process; null takes cores / processes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """Where processes are placed."""

    kind: Literal["local", "multi_node", "slurm", "skypilot"] = "local"
    """Who starts them."""
    nodes: int = used_by("multi_node", "slurm", "skypilot", default=1)
    """Number of machines."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """What is measured before and after."""

    prompts: tuple[str, ...] = ()
    """Questions answered by the base model and by the tuned one."""
    max_new_tokens: int = 64
    """Longest answer, in tokens."""
    batch_size: int = 8
    """Rows computed at a time."""
    max_rows: int | None = 200
    """Rows the loss is measured on; null takes all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufConfig:
    """GGUF files for llama.cpp and Ollama."""

    types: tuple[GgufType, ...] = ()
    """llama.cpp types to write, such as `f16` or `q4_k_m`; the first is served by default."""
    context: int | None = None
    """Context length for the Modelfile, in tokens; null takes the model's own, at most 8192."""
    adapter: bool = False
    """Whether the LoRA adapter is written by itself, too, for llama.cpp's `--lora`."""
    imatrix: bool = False
    """Whether types of up to 4 bits weigh errors by what the training data send through each layer."""
    llama_cpp: str | None = None
    """Folder with llama.cpp's source, whose converter writes architectures that tunerun does not; null downloads it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """What is written for deployment."""

    max_shard_size: str = "5GB"
    """Largest safetensors file of a merged model, such as `2GB` or `500MB`."""
    gguf: GgufConfig = GgufConfig()
    """GGUF files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyConfig:
    """Proof that the exported model is the trained one."""

    level: Literal["quick", "full", "off"] = "quick"
    """`quick` compares on a few prompts, `full` on the held-out rows too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """An OpenAI-compatible endpoint."""

    engine: Literal["auto", "llamacpp", "vllm", "transformers"] = "auto"
    """What computes the answers; `auto` takes llama.cpp for GGUF files and transformers for folders."""
    host: str = "127.0.0.1"
    """Address to listen on; any but a loopback address needs a key."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    api_key_env: str | None = None
    """Environment variable that holds the key clients must send."""
    context: int | None = None
    """Context length, in tokens; null takes the model's own."""
    max_concurrent: int = 8
    """Requests computed or waiting at a time; more are answered with 429."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackConfig:
    """Where metrics go besides metrics.jsonl and report.html."""

    tensorboard: bool = False
    """Write TensorBoard event files to the run directory."""
    wandb: bool = False
    """Log to Weights & Biases; offline when no key is set."""
    project: str = "tunerun"
    """Project name for wandb."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """How the trials of `tunerun -m` are compared."""

    metric: Literal["eval_loss", "train_loss", "tokens_per_second", "gguf_bytes", "quantisation_kl"] = "eval_loss"
    """What ranks the trials: the loss on held-out rows after training, the last training loss, the median speed, the
    size of the smallest GGUF file, or the largest divergence of a GGUF file from the merged model."""
    finish_best: bool = False
    """Run the stages after eval for the best trial only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvConfig:
    """Where things are kept on this machine."""

    cache_dir: str | None = None
    """Folder for downloaded models; null takes the hub's own (HF_HOME)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LockConfig:
    """What a run has to find as it was; `tunerun lock RUN` writes these."""

    model_sha256: str | None = None
    """Hash of the base model's files."""
    data_sha256: Mapping[str, str] = field(default_factory=dict)
    """Hash of each local file or folder of data, by its path."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Version of each package that can change a result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """One run, from data to a served model."""

    name: str | None = None
    """Names the run directory and exported files; null takes the recipe's name."""
    run_dir: str | None = None
    """Folder of the run; null makes outputs/<name>/<run id>."""
    seed: int = 42
    """Seeds shuffling, dropout, adapter initialisation and sampling."""
    stages: tuple[Stage, ...] = ("data", "train", "eval", "merge", "export", "verify")
    """What to run, in this order."""
    model: ModelConfig = ModelConfig()
    """Which weights to start from."""
    data: DataConfig = DataConfig()
    """Which rows to train on."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """What is learned."""
    method: MethodConfig = MethodConfig()
    """Which weights move."""
    train: TrainConfig = TrainConfig()
    """How the weights move."""
    hardware: HardwareConfig = HardwareConfig()
    """What to compute on."""
    cluster: ClusterConfig = ClusterConfig()
    """Where processes are placed."""
    eval: EvalConfig = EvalConfig()
    """What is measured."""
    export: ExportConfig = ExportConfig()
    """What is written for deployment."""
    verify: VerifyConfig = VerifyConfig()
    """Proof of the export."""
    serve: ServeConfig = ServeConfig()
    """The endpoint."""
    track: TrackConfig = TrackConfig()
    """Trackers."""
    sweep: SweepConfig = SweepConfig()
    """Many runs."""
    env: EnvConfig = EnvConfig()
    """This machine."""
    lock: LockConfig = LockConfig()
    """What a run has to find as it was."""
