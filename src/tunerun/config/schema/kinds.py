"""Names that keys can have as values, and how a key says who reads it."""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal

Stage = Literal["answer", "data", "train", "eval", "merge", "export", "verify", "publish", "serve"]
ObjectiveKind = Literal["sft", "pretrain", "dpo", "orpo", "simpo", "kto", "reward", "distill"]
MethodKind = Literal["full", "freeze", "lora", "dora", "rslora", "pissa", "lora_plus", "qlora"]
GgufType = Literal[
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_0", "q5_1", "q4_k_m", "q4_k_s", "q4_0", "q4_1",
    "iq4_nl", "iq4_xs", "q3_k_l", "q3_k_m", "q3_k_s", "iq3_m", "iq3_s", "q2_k", "tq2_0", "tq1_0",
    "iq3_xs", "iq3_xxs", "q2_k_s", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s",
]  # fmt: skip

# Forms of a model with fewer bits, as `export` makes them: GGUF types, and folders.
QuantisedForm = Literal[GgufType, "bnb4", "gptq", "awq", "fp8"]

# What can compute the answers of a served model.
EngineChoice = Literal["auto", "llamacpp", "vllm", "transformers", "lmdeploy", "ollama", "llama_server"]

# How several answers are computed at a time.
Batching = Literal["single", "continuous"]

# What `publish` uploads, in the order that it takes them.
Published = Literal["merged", "adapter", "gguf", "bnb4", "gptq", "awq", "fp8"]
PUBLISHED: tuple[Published, ...] = ("merged", "adapter", "gguf", "bnb4", "gptq", "awq", "fp8")

DataFormat = Literal["auto", "alpaca", "sharegpt", "messages", "xtuner", "columns", "text"]

# What `data.columns` can name.
DATA_PARTS = ("system", "user", "assistant", "text", "chosen", "rejected", "label")
Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "lion", "adafactor", "muon"]

ALL_LINEAR = "all-linear"
ADAPTER_METHODS = ("lora", "dora", "rslora", "pissa", "lora_plus", "qlora")
PAGED_OPTIMIZERS = ("paged_adamw", "paged_adamw_8bit")
BITSANDBYTES_OPTIMIZERS = ("adamw_8bit", *PAGED_OPTIMIZERS)
ADAM_OPTIMIZERS = ("adamw", *BITSANDBYTES_OPTIMIZERS, "muon")


def used_by(*kinds: str, default: Any, by: str = "kind") -> Any:
    """Declares a field that is read only when another one of its section, `by`, has one of some values."""
    return field(default=default, metadata={"kinds": kinds, "by": by})
