"""The sizes of a model as numbers: read from a folder's config.json, and counted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunerun.config.schema import ShapeConfig
from tunerun.errors import Problem, UserError
from tunerun.formats.architectures import TRAINED_ARCHITECTURES

# What the transformers classes of these names build, where it is not in config.json.
_QKV_BIAS_ONLY = ("Qwen2ForCausalLM",)
_HEAD_NORMS = ("Qwen3ForCausalLM", "Gemma3ForCausalLM")
_FOUR_NORMS = ("Gemma2ForCausalLM", "Gemma3ForCausalLM")
_TIED_BY_DEFAULT = ("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM")
_CAUSAL = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """One linear layer without its bias: `outputs x inputs` weights."""

    inputs: int
    outputs: int

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return self.inputs * self.outputs


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """A complete shape: every size is known."""

    architecture: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied_embeddings: bool
    attention_bias: bool

    @property
    def query_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> dict[str, Linear]:
        """The linear layers of one decoder layer, by the names transformers gives them."""
        return {
            "q_proj": Linear(inputs=self.hidden, outputs=self.query_width),
            "k_proj": Linear(inputs=self.hidden, outputs=self.kv_width),
            "v_proj": Linear(inputs=self.hidden, outputs=self.kv_width),
            "o_proj": Linear(inputs=self.query_width, outputs=self.hidden),
            "gate_proj": Linear(inputs=self.hidden, outputs=self.intermediate),
            "up_proj": Linear(inputs=self.hidden, outputs=self.intermediate),
            "down_proj": Linear(inputs=self.intermediate, outputs=self.hidden),
        }

    @property
    def biased(self) -> tuple[str, ...]:
        """Those of the linear layers that have a bias."""
        if not self.attention_bias:
            return ()
        return ("q_proj", "k_proj", "v_proj", *(() if self.architecture in _QKV_BIAS_ONLY else ("o_proj",)))

    @property
    def norms(self) -> tuple[str, ...]:
        """The norms of one decoder layer over the whole width, by the names transformers gives them."""
        two = ("input_layernorm", "post_attention_layernorm")
        four = (*two, "pre_feedforward_layernorm", "post_feedforward_layernorm")
        return four if self.architecture in _FOUR_NORMS else two

    @property
    def head_norms(self) -> tuple[str, ...]:
        """The norms over one head."""
        return ("q_norm", "k_norm") if self.architecture in _HEAD_NORMS else ()

    @property
    def layer_linear_parameters(self) -> int:
        """Weights in the linear layers of one decoder layer."""
        return sum(linear.parameters for linear in self.linears.values())

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding, and as many again in a head of its own."""
        return self.vocabulary * self.hidden

    @property
    def layer_parameters(self) -> int:
        """All weights of one decoder layer."""
        biases = sum(self.linears[name].outputs for name in self.biased)
        norms = len(self.norms) * self.hidden + len(self.head_norms) * self.head_dim
        return self.layer_linear_parameters + biases + norms

    @property
    def parameters(self) -> int:
        """All weights, shared ones once."""
        embeddings = self.embedding_parameters * (1 if self.tied_embeddings else 2)
        return embeddings + self.layers * self.layer_parameters + self.hidden

    @property
    def matmul_parameters(self) -> int:
        """Weights that every token is multiplied with: the decoder's linear layers and the head."""
        return self.layers * self.layer_linear_parameters + self.embedding_parameters


def sizes(shape: ShapeConfig) -> Sizes:
    """Completes a shape; only `head_dim` may be left out.

    Raises:
        UserError: Sizes are missing or impossible; names each.
    """
    needed = ("architecture", "layers", "hidden", "intermediate", "heads", "kv_heads", "vocabulary")
    values: dict[str, Any] = {name: getattr(shape, name) for name in needed}
    problems = [
        Problem(where=f"model.shape.{name}", what="is missing.", fix="Copy it from the model's config.json.")
        for name, value in values.items()
        if value is None
    ]
    problems += [
        Problem(where=f"model.shape.{name}", what=f"{value} is not at least 1.")
        for name, value in values.items()
        if isinstance(value, int) and value < 1
    ]
    if problems:
        raise UserError(problems)
    return Sizes(
        head_dim=values["hidden"] // values["heads"] if shape.head_dim is None else shape.head_dim,
        tied_embeddings=shape.tied_embeddings,
        attention_bias=shape.attention_bias,
        **values,
    )


def is_complete(shape: ShapeConfig) -> bool:
    """Says whether anything can be estimated from a shape."""
    try:
        sizes(shape)
    except UserError:
        return False
    return True


def read_shape(folder: Path) -> ShapeConfig:
    """Reads the shape of a local model from its config.json, without transformers.

    Returns:
        Of an architecture that is not one of `TRAINED_ARCHITECTURES`, its name alone.

    Raises:
        UserError: There is no config.json, it is damaged, or it is of no model that continues text.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return _shape(config, path)
    except OSError as error:
        raise UserError(Problem(where=str(path), what=f"cannot be read: {error.strerror}.")) from error
    except json.JSONDecodeError as error:
        raise UserError(Problem(where=f"{path}:{error.lineno}", what=f"is not JSON: {error.msg}.")) from error
    except KeyError as error:
        raise UserError(Problem(where=str(path), what=f"has no {error.args[0]!r}.")) from error


def _shape(config: Any, path: Path) -> ShapeConfig:
    if not isinstance(config, dict):
        raise UserError(Problem(where=str(path), what="is not an object with keys."))
    if not config["architectures"]:
        raise KeyError("architectures")
    architecture = config["architectures"][0]
    if not architecture.endswith(_CAUSAL):
        what = f"{architecture} is not a model that continues text."
        raise UserError(Problem(where=str(path), what=what, fix=f"Its name should end in {' or '.join(_CAUSAL)}."))
    if architecture not in TRAINED_ARCHITECTURES:
        return ShapeConfig(architecture=architecture)
    heads = config["num_attention_heads"]
    return ShapeConfig(
        architecture=architecture,
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        heads=heads,
        kv_heads=_or(config, "num_key_value_heads", heads),
        head_dim=_or(config, "head_dim", None),
        vocabulary=config["vocab_size"],
        # What config.json leaves out is the default of the transformers class.
        tied_embeddings=_or(config, "tie_word_embeddings", architecture in _TIED_BY_DEFAULT),
        attention_bias=architecture in _QKV_BIAS_ONLY or _or(config, "attention_bias", False),
        context=_or(config, "max_position_embeddings", None),
    )


def _or(config: dict[str, Any], key: str, default: Any) -> Any:
    return default if key not in config or config[key] is None else config[key]
