"""Keys of the sections `eval`, `export`, `verify`, `serve` and `track`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tunerun.config.schema.kinds import Batching, EngineChoice, GgufType, Published, QuantisedForm, used_by


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """What is measured before and after."""

    prompts: tuple[str, ...] = ()
    """Questions answered at each checkpoint, by the base model and by the tuned one."""
    max_new_tokens: int = 64
    """Longest answer, in tokens."""
    batch_size: int = 8
    """Rows computed at a time; halved where memory runs out while training."""
    max_rows: int | None = 200
    """Rows the loss is measured on; null takes all."""
    generate_rows: int = 0
    """Held-out rows whose last answer is generated and compared with the row's own by BLEU-4 and ROUGE."""
    lm_eval: tuple[str, ...] = ()
    """Tasks of the LM Evaluation Harness, run on the base model and the tuned one: names such as `hellaswag` or `mmlu`,
    or YAML files of your own. Their data are downloaded, unless HF_HUB_OFFLINE is set. A checkpoint is evaluated in a
    run of its own, `stages=[data,eval] model.adapter=RUN/checkpoints/step-N` beside the recipe and the data, and one of
    a whole model by `model.path=` in place of `model.adapter=`; the same goes for exporting it."""
    lm_eval_tasks_dir: str | None = None
    """Folder with task files of your own, whose names `lm_eval` may then use too."""
    lm_eval_fewshot: int | None = None
    """Examples put before each question; null takes what each task says."""
    lm_eval_limit: int | None = None
    """Use only the first questions of each task, for a quick try."""
    lm_eval_chat: bool = False
    """Whether the questions go through the model's chat template."""


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
class Bnb4Config:
    """A model folder in bitsandbytes' NF4, for transformers and vLLM."""

    write: bool = False
    """Write export/bnb4."""
    double_quant: bool = True
    """Quantise the scales too, which saves 0.4 bits a weight."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GptqConfig:
    """A model folder in GPTQ's form, for vLLM, SGLang and transformers, made by gptqmodel (`env.export.python`)."""

    write: bool = False
    """Write export/gptq."""
    bits: Literal[2, 4, 8] = 4
    """Of a weight."""
    group_size: int = 128
    """Weights with a scale of their own; they must divide every layer's inputs."""
    rows: int = 256
    """Rows of the training data to calibrate on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AwqConfig:
    """A model folder in 4 bits by AWQ, for vLLM and SGLang, made by llm-compressor (`env.export.python`)."""

    write: bool = False
    """Write export/awq."""
    group_size: int = 128
    """Weights with a scale of their own; they must divide every layer's inputs."""
    rows: int = 256
    """Rows of the training data to calibrate on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8Config:
    """A model folder in FP8, activations too, for vLLM and SGLang, made by llm-compressor (`env.export.python`)."""

    write: bool = False
    """Write export/fp8."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """What is written for deployment."""

    max_shard_size: str = "5GB"
    """Largest safetensors file of a merged model, such as `2GB` or `500MB`."""
    merge_base: Literal["full_precision", "dequantised"] | None = None
    """What a qlora adapter is merged into: the original weights, or these rounded as they were in training; null takes
    the latter, which gives the network that was trained."""
    system: str | None = None
    """System prompt that Ollama and LMDeploy give conversations without one; null takes `data.system`, an empty one
    none."""
    gguf: GgufConfig = GgufConfig()
    """GGUF files."""
    bnb4: Bnb4Config = Bnb4Config()
    """A folder of 4-bit weights."""
    gptq: GptqConfig = GptqConfig()
    """A folder of calibrated weights."""
    awq: AwqConfig = AwqConfig()
    """A folder of calibrated weights of 4 bits."""
    fp8: Fp8Config = Fp8Config()
    """A folder of weights of 8 bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundConfig:
    """How far an exported file or folder may be from the model that it was made from."""

    mean_kl_nats: float | None = None
    """Largest mean divergence of what it predicts for the next token, in nats; null takes tunerun's own for the form,
    which `verify/report.json` shows."""
    top1_agreement: float | None = None
    """Smallest share of places with the same likeliest token; null takes 0.95. Near ties count as the same: leads that
    the divergence that was measured explains, and never more than tunerun's own bound for the form would."""
    perplexity_ratio: float | None = None
    """Largest perplexity, as a multiple of the model's own; null takes e to the power of the divergence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyConfig:
    """Proof that the exported model is the trained one."""

    level: Literal["quick", "full", "off"] = "quick"
    """`quick` compares on 16 probes and 4 rows, held out if there are such, of up to 256 tokens each. `full` takes 32
    rows, compares answers of unquantised files token by token, reads every weight and file, and tries more engines."""
    bounds: Mapping[QuantisedForm, BoundConfig] = field(default_factory=dict)
    """What forms of the model are held to, by their names: `q4_k_m` and other GGUF types, `bnb4`, `gptq`, `awq`,
    `fp8`. merged/ has a bound of its own: what rounding the exact merge to its number format loses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishConfig:
    """Where the finished model goes. Tokens come from the environment: HF_TOKEN, MODELSCOPE_API_TOKEN."""

    hub: Literal["hf", "modelscope"] = "hf"
    """Whose repository."""
    repo: str | None = None
    """`owner/name`; made when it does not exist. Null uploads nothing."""
    private: bool = True
    """Whether a repository that is made can be seen by its owner only."""
    revision: str | None = None
    """Branch; null takes the repository's own (hf: main, modelscope: master). On hf it is made when it does not exist;
    on modelscope it has to, as its client makes none."""
    folder: str | None = None
    """Folder in the repository; null takes its root."""
    artifacts: tuple[Published, ...] = ()
    """What is uploaded: `merged`, `adapter`, `gguf`, `bnb4`, `gptq`, `awq`, `fp8`; the first goes to the root, the
    others into folders of their name. Empty takes merged/ or else the adapter, and what was exported."""
    ollama: str | None = None
    """Name of a model to create in this machine's Ollama from the exported files; null creates none."""
    force: bool = False
    """Publish although a verify gate failed."""
    dry_run: bool = False
    """Only list what would be uploaded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """An OpenAI-compatible endpoint."""

    engine: EngineChoice = "auto"
    """What computes the answers; `auto` takes vLLM on a GPU where `env.serve.python` has it, and else llama.cpp for
    GGUF files and transformers for folders."""
    host: str = "127.0.0.1"
    """Address to listen on; any but a loopback address needs a key."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    api_key_env: str | None = None
    """Environment variable that holds the key clients must send."""
    context: int | None = None
    """Context length, in tokens; null takes the model's own."""
    max_concurrent: int = 64
    """Answers computed or waiting at a time, for each engine process; requests for more get status 429."""
    max_n: int = 8
    """Most answers to one request (`n`)."""
    max_body_bytes: int = 4194304
    """Longest request body."""
    max_prompt_tokens: int | None = None
    """Longest prompt; null takes what fits into the context."""
    request_seconds: float = 600.0
    """Longest time from a request to the end of its answer."""
    cors_origins: tuple[str, ...] = ()
    """Web origins (`https://chat.example`) whose pages may ask from a browser."""
    batching: Batching = field(default="single", metadata={"kinds": ("auto", "transformers"), "by": "engine"})
    """How transformers computes answers that are open at the same time: `single` each by itself, with the bits that a
    single client gets; `continuous` in batches, which is faster for several clients. Its near ties may fall otherwise,
    and it serves one adapter for each base."""
    gpus: int | None = used_by("auto", "vllm", "lmdeploy", default=None, by="engine")
    """GPUs that share the model (tensor parallelism); null takes as few as hold it."""
    extra_args: Mapping[str, Any] = field(
        default_factory=dict, metadata={"kinds": ("auto", "vllm", "lmdeploy", "ollama", "llama_server"), "by": "engine"}
    )
    """Arguments that tunerun has no key for: of `vllm serve` or `lmdeploy serve api_server` as they are called there
    (`max_num_seqs: 64`, `enforce_eager: true`), options of Ollama (`num_gpu: 20`), or of
    `llama-server` (`parallel: 2`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackConfig:
    """Where metrics go besides metrics.jsonl and report.html."""

    tensorboard: bool = False
    """Write TensorBoard event files to the run directory."""
    wandb: bool = False
    """Log to Weights & Biases; offline when no key is set."""
    trackio: bool = False
    """Log to trackio's local store, shown by `trackio show`."""
    mlflow: bool = False
    """Log to MLflow: where MLFLOW_TRACKING_URI says, or to a data base in the run directory."""
    swanlab: bool = False
    """Log to SwanLab; offline when no key is set."""
    group: str | None = None
    """Group of runs on Weights & Biases; null takes the sweep's id for its trials, and none for a single run."""
    project: str = "tunerun"
    """Project (experiment of MLflow) that trackers put the run in."""
