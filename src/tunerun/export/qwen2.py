"""Qwen2 in GGUF: sizes, rotary embedding and tensor names. Qwen2.5 and R1-Distill-Qwen are Qwen2, too.

Keys and names are llama.cpp's (`gguf-py/gguf/constants.py`, `conversion/qwen.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunerun.errors import Problem
from tunerun.export.mix import OUTPUT, TOKENS, Sizes

ARCHITECTURE = "qwen2"

_OUTER = {"model.embed_tokens.weight": TOKENS, "model.norm.weight": "output_norm.weight", "lm_head.weight": OUTPUT}
_INNER = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
_SIZES = {
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
}
_YARN = {
    "extrapolation_factor": "yarn_ext_factor",
    "attention_factor": "yarn_attn_factor",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}


def read_sizes(config: Mapping[str, Any]) -> Sizes:
    """Reads from config.json what the choice of types depends on."""
    return Sizes(
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        key_value_heads=config["num_key_value_heads"],
    )


def tensor_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Maps the model's tensor names to GGUF's, in the order of the file.

    A tied model's `lm_head.weight` is left out: llama.cpp then takes the embedding.
    """
    outer = dict(_OUTER)
    if config.get("tie_word_embeddings", False):
        del outer["lm_head.weight"]
    layers = range(config["num_hidden_layers"])
    return outer | {
        f"model.layers.{layer}.{theirs}": f"blk.{layer}.{ours}" for layer in layers for theirs, ours in _INNER.items()
    }


def check_config(config: Mapping[str, Any]) -> list[Problem]:
    """Finds what GGUF's Qwen2 cannot say."""
    problems = []
    if config.get("use_sliding_window", False):
        problems.append(_problem("use_sliding_window", "llama.cpp's Qwen2 attends to the whole context."))
    if config.get("hidden_act", "silu") != "silu":
        problems.append(_problem("hidden_act", f"llama.cpp's Qwen2 has silu, not {config['hidden_act']}."))
    kind = _rope(config)["rope_type"]
    if kind not in ("default", "linear", "yarn"):
        problems.append(_problem("rope_parameters", f"rotary scaling of type {kind} is not supported."))
    missing = [key for key in (*_SIZES, "rms_norm_eps") if key not in config]
    problems += [_problem(key, "is missing.") for key in missing]
    return problems


def add_parameters(header: Any, config: Mapping[str, Any]) -> None:
    """Adds the model's sizes and constants to the header.

    Args:
        header: A `gguf.GGUFWriter`.
        config: config.json, checked.
    """
    for theirs, ours in _SIZES.items():
        header.add_uint32(f"{ARCHITECTURE}.{ours}", config[theirs])
    header.add_float32(f"{ARCHITECTURE}.attention.layer_norm_rms_epsilon", config["rms_norm_eps"])
    if config.get("head_dim") is not None:
        header.add_uint32(f"{ARCHITECTURE}.attention.key_length", config["head_dim"])
        header.add_uint32(f"{ARCHITECTURE}.attention.value_length", config["head_dim"])
    _add_rope(header, _rope(config))


def _add_rope(header: Any, rope: Mapping[str, Any]) -> None:
    header.add_float32(f"{ARCHITECTURE}.rope.freq_base", rope["rope_theta"])
    if rope["rope_type"] == "default":
        return
    scaling = f"{ARCHITECTURE}.rope.scaling"
    # GGUF has the same words for the types.
    header.add_string(f"{scaling}.type", rope["rope_type"])
    header.add_float32(f"{scaling}.factor", rope["factor"])
    if rope["rope_type"] == "yarn":
        header.add_uint32(f"{scaling}.original_context_length", rope["original_max_position_embeddings"])
        for theirs, ours in _YARN.items():
            if rope.get(theirs) is not None:
                header.add_float32(f"{scaling}.{ours}", rope[theirs])


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Brings the two ways of writing the rotary embedding (transformers 4 and 5) to one."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    rope.setdefault("rope_type", rope.get("type", "default"))
    if "original_max_position_embeddings" not in rope and "max_position_embeddings" in config:
        rope["original_max_position_embeddings"] = config["max_position_embeddings"]
    return rope


def _problem(key: str, what: str) -> Problem:
    return Problem(where=f"config.json: {key}", what=what)
