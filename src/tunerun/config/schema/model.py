"""Keys of the section `model`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
    """Local folder, a run or checkpoint with a whole model, hub id (`org/name`) or shipped model (`tunerun://sprout`)."""
    hub: Literal["hf", "modelscope"] = "hf"
    """Where a hub id is looked up."""
    revision: str | None = None
    """Commit, tag or branch on the hub; the commit it resolves to is recorded."""
    adapter: str | None = None
    """Folder of an existing adapter, or a run or checkpoint that has one: continued by train; merged and exported when
    train is not among the stages."""
    chat_template: str | None = None
    """Name of a shipped chat template (`chatml`) or a Jinja file, used instead of the model's own."""
    init: Literal["pretrained", "random"] = "pretrained"
    """`random` starts from seeded random weights in the shape of the folder's config.json."""
    resize_embeddings: bool = False
    """Add rows to the embedding for tokens that the tokenizer has and the weights do not; an adapter trains them."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""
    shape: ShapeConfig = ShapeConfig()
    """Sizes for the estimates."""
