"""Model architectures: which ones are trained, and what GGUF needs to know of those that it is written for here.

One row of facts for each class that config.json names. Tensor names and metadata keys are llama.cpp's
(`gguf-py/gguf/constants.py`, `conversion/*.py`). Read by plans, which ask what can be written, and by the export.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """How a model that transformers knows is written for llama.cpp."""

    name: str
    """llama.cpp's name, the prefix of its metadata keys."""
    layer: Mapping[str, str]
    """Tensors that every layer has: the end of their name here, and in GGUF."""
    optional: Mapping[str, str] = field(default_factory=dict)
    """Tensors that layers of some models have."""
    outer: Mapping[str, str] = field(default_factory=lambda: dict(_OUTER))
    """Tensors outside layers."""
    fused: str = ""
    """The tensor of a layer that holds the query, key and value rows of each key/value head in turn."""
    keys: tuple[str, ...]
    """Metadata that is written, without the architecture's name."""
    interleaves_heads: bool = False
    """Whether query and key rows are reordered, from halves that rotate together to neighbours that do."""
    norm_offset: int = 0
    """What the model adds to the weights of its norms; the file has them with it."""
    has_head: bool = True
    """Whether llama.cpp reads an output head that is not the embedding."""
    activations: tuple[str, ...] = ("silu",)
    """What `hidden_act` may be."""
    rope_types: tuple[str, ...] = ("default", "linear", "yarn")
    """Rotary scaling that llama.cpp has for it."""
    full_attention_every: int = 0
    """Every so many layers see the whole context, the others a window; 0 when all do."""
    hidden_scale_layers: int | None = None
    """Number of layers of the one size whose queries llama.cpp scales by hidden size / heads, not by head size."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of config.json that transformers fills in."""
    plain_added_tokens: bool = False
    """Whether added tokens are special only when they say so, and not also when they look it."""


_NORMS = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
}
_FOUR_NORMS = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
}
_ATTENTION = {
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
}
_ATTENTION_BIAS = {
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
}
_HEAD_NORMS = {
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
}
_MLP = {
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
_MLP_BIAS = {theirs.replace("weight", "bias"): ours.replace("weight", "bias") for theirs, ours in _MLP.items()}

_SIZES = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
)
_HEAD_SIZES = ("attention.key_length", "attention.value_length")
_ROPE = ("rope.freq_base", "rope.scaling")
_GELU = ("gelu_pytorch_tanh", "gelu")
_EPSILON = {"rms_norm_eps": 1e-6}
_GEMMA_DEFAULTS = _EPSILON | {"tie_word_embeddings": True, "head_dim": 256}

_LLAMA = Architecture(
    name="llama",
    layer=_NORMS | _ATTENTION | _MLP,
    optional=_ATTENTION_BIAS | {"self_attn.o_proj.bias": "attn_output.bias"} | _MLP_BIAS,
    keys=(*_SIZES, *_ROPE, *_HEAD_SIZES, "vocab_size", "rope.dimension_count"),
    interleaves_heads=True,
    rope_types=("default", "linear", "yarn", "llama3", "dynamic"),
    defaults=_EPSILON,
)

TRAINED_ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "InternLM2ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
)
"""Classes of transformers that are trained and measured: samples of one row are known not to see each other in them.
Others are merged, exported, verified and served."""

GGUF_ARCHITECTURES: Mapping[str, Architecture] = {
    "Qwen2ForCausalLM": Architecture(
        name="qwen2",
        layer=_NORMS | _ATTENTION | _ATTENTION_BIAS | _MLP,
        keys=(*_SIZES, *_ROPE, *_HEAD_SIZES),
        defaults=_EPSILON | {"use_sliding_window": False},
    ),
    "Qwen3ForCausalLM": Architecture(
        name="qwen3",
        layer=_NORMS | _ATTENTION | _HEAD_NORMS | _MLP,
        keys=(*_SIZES, *_ROPE, *_HEAD_SIZES),
        defaults=_EPSILON | {"head_dim": 128, "use_sliding_window": False},
    ),
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "GemmaForCausalLM": Architecture(
        name="gemma",
        layer=_NORMS | _ATTENTION | _MLP,
        keys=(*_SIZES, *_HEAD_SIZES),
        norm_offset=1,
        has_head=False,
        activations=_GELU,
        rope_types=("default",),
        defaults=_GEMMA_DEFAULTS,
    ),
    "Gemma2ForCausalLM": Architecture(
        name="gemma2",
        layer=_FOUR_NORMS | _ATTENTION | _MLP,
        keys=(*_SIZES, *_HEAD_SIZES, "attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window"),
        norm_offset=1,
        has_head=False,
        activations=_GELU,
        rope_types=("default",),
        full_attention_every=2,
        hidden_scale_layers=46,
        defaults=_GEMMA_DEFAULTS
        | {"sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "Gemma3ForCausalLM": Architecture(
        name="gemma3",
        layer=_FOUR_NORMS | _ATTENTION | _HEAD_NORMS | _MLP,
        keys=(
            *_SIZES,
            *_ROPE,
            *_HEAD_SIZES,
            "rope.freq_base_swa",
            "final_logit_softcapping",
            "attention.sliding_window",
        ),
        norm_offset=1,
        activations=_GELU,
        rope_types=("default", "linear"),
        full_attention_every=6,
        hidden_scale_layers=62,
        defaults=_GEMMA_DEFAULTS
        | {"sliding_window": 4096, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "final_logit_softcapping": None},
    ),
    "Phi3ForCausalLM": Architecture(
        name="phi3",
        layer=_NORMS
        | {
            "self_attn.qkv_proj.weight": "attn_qkv.weight",
            "self_attn.o_proj.weight": "attn_output.weight",
            "mlp.gate_up_proj.weight": "ffn_up.weight",
            "mlp.down_proj.weight": "ffn_down.weight",
        },
        keys=(
            *_SIZES,
            "rope.freq_base",
            "rope.dimension_count",
            "rope.scaling.original_context_length",
            "attention.sliding_window",
        ),
        rope_types=("default", "longrope", "su"),
        defaults={"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096, "sliding_window": 0},
        plain_added_tokens=True,
    ),
    "InternLM2ForCausalLM": Architecture(
        name="internlm2",
        layer={
            "attention_norm.weight": "attn_norm.weight",
            "ffn_norm.weight": "ffn_norm.weight",
            "attention.wo.weight": "attn_output.weight",
            "feed_forward.w1.weight": "ffn_gate.weight",
            "feed_forward.w3.weight": "ffn_up.weight",
            "feed_forward.w2.weight": "ffn_down.weight",
        },
        outer={
            "model.tok_embeddings.weight": "token_embd.weight",
            "model.norm.weight": "output_norm.weight",
            "output.weight": "output.weight",
        },
        fused="attention.wqkv.weight",
        keys=(*_SIZES, *_ROPE),
        interleaves_heads=True,
        rope_types=("default", "linear", "dynamic"),
        defaults=_EPSILON,
    ),
}
"""By the class in `architectures` of config.json."""
