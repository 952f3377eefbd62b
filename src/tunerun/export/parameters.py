"""A model's sizes and constants as GGUF metadata, and what of config.json llama.cpp has no equal for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from tunerun.errors import Problem
from tunerun.export.mix import Sizes
from tunerun.formats.architectures import Architecture

# Metadata that config.json states under a name of its own.
_FROM_CONFIG = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "vocab_size": "vocab_size",
}
_FLOATS = {
    "attention.layer_norm_rms_epsilon", "attn_logit_softcapping", "final_logit_softcapping", "rope.freq_base",
    "rope.freq_base_swa", "rope.scaling.factor", "rope.scaling.attn_factor", "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
}  # fmt: skip
_YARN = {
    "extrapolation_factor": "rope.scaling.yarn_ext_factor",
    "attention_factor": "rope.scaling.yarn_attn_factor",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
}
_NEEDED = ("num_hidden_layers", "max_position_embeddings", "hidden_size", "intermediate_size", "num_attention_heads")
# Phi-3's long factors: the same thing under two names.
_LONG_FACTORS = ("longrope", "su")


def fill_config(config: Mapping[str, Any], architecture: Architecture) -> dict[str, Any]:
    """Adds to config.json what transformers fills in for its class."""
    filled = {**architecture.defaults, **config}
    if filled.get("num_key_value_heads") is None:
        filled["num_key_value_heads"] = filled.get("num_attention_heads")
    if filled.get("head_dim") is None:
        filled.pop("head_dim", None)
        if architecture.name == "llama" and not set(_NEEDED) - set(filled):
            filled["head_dim"] = filled["hidden_size"] // filled["num_attention_heads"]
    return filled


def read_sizes(config: Mapping[str, Any], architecture: Architecture) -> Sizes:
    """Reads from a filled config what the choice of types depends on."""
    return Sizes(
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        key_value_heads=config["num_key_value_heads"],
        architecture=architecture.name,
    )


def head_size(config: Mapping[str, Any]) -> int:
    """Returns the values of one attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def check_config(config: Mapping[str, Any], architecture: Architecture) -> list[Problem]:
    """Finds what llama.cpp would compute otherwise.

    Args:
        config: Filled.
        architecture: Of the model.
    """
    problems = [_problem(key, "is missing.") for key in _NEEDED if key not in config]
    if problems:
        return problems
    name = architecture.name
    activation = config.get("hidden_activation") or config.get("hidden_act", architecture.activations[0])
    if activation not in architecture.activations:
        problems.append(
            _problem("hidden_act", f"llama.cpp's {name} has {architecture.activations[0]}, not {activation}.")
        )
    kind = rope_of(config)["rope_type"]
    if kind not in architecture.rope_types:
        problems.append(_problem("rope_parameters", f"rotary scaling of type {kind} is not supported for {name}."))
    if config.get("use_sliding_window", False):
        problems.append(_problem("use_sliding_window", f"llama.cpp's {name} attends to the whole context."))
    if "attn_logit_softcapping" in architecture.keys and config["attn_logit_softcapping"] is None:
        problems.append(_problem("attn_logit_softcapping", f"llama.cpp's {name} always has a cap."))
    return problems + _check_windows(config, architecture) + _check_scale(config, architecture)


def _check_windows(config: Mapping[str, Any], architecture: Architecture) -> list[Problem]:
    every = architecture.full_attention_every
    if not every or config.get("layer_types") is None:
        return []
    wanted = ["full_attention" if (layer + 1) % every == 0 else "sliding_attention" for layer in _layers(config)]
    if config["layer_types"] == wanted:
        return []
    return [_problem("layer_types", f"in llama.cpp's {architecture.name} every {every}th layer has full attention.")]


def _check_scale(config: Mapping[str, Any], architecture: Architecture) -> list[Problem]:
    scalar = config.get("query_pre_attn_scalar")
    if scalar is None:
        return []
    by_hidden = architecture.hidden_scale_layers == config["num_hidden_layers"]
    expected = config["hidden_size"] // config["num_attention_heads"] if by_hidden else head_size(config)
    if scalar == expected:
        return []
    return [_problem("query_pre_attn_scalar", f"llama.cpp's {architecture.name} has {expected} here, not {scalar}.")]


def add_parameters(header: Any, config: Mapping[str, Any], architecture: Architecture) -> None:
    """Adds the model's sizes and constants to the header.

    Args:
        header: A `gguf.GGUFWriter`.
        config: Filled and checked.
        architecture: Of the model.
    """
    for key, value in _parameters(config, architecture):
        full = f"{architecture.name}.{key}"
        if key in _FLOATS:
            header.add_float32(full, value)
        elif isinstance(value, str):
            header.add_string(full, value)
        else:
            header.add_uint32(full, value)


def _parameters(config: Mapping[str, Any], architecture: Architecture) -> Iterator[tuple[str, Any]]:
    rope = rope_of(config)
    for key in architecture.keys:
        if key == "rope.scaling":
            yield from _scaling(rope)
        elif key == "rope.freq_base":
            yield key, rope["rope_theta"]
        elif key == "rope.freq_base_swa":
            yield key, _window_theta(config)
        elif key == "rope.dimension_count":
            # Phi-3 may rotate a part of each head.
            yield key, int(rope.get("partial_rotary_factor", 1.0) * head_size(config))
        elif key == "rope.scaling.original_context_length":
            yield key, rope["original_max_position_embeddings"]
        elif key == "attention.sliding_window":
            yield key, config["sliding_window"] or 0
        elif config.get(_FROM_CONFIG[key]) is not None:
            yield key, config[_FROM_CONFIG[key]]
    if rope["rope_type"] in _LONG_FACTORS:
        yield "rope.scaling.attn_factor", _long_attention_factor(config, rope)


def _scaling(rope: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    # Llama 3's scaling is a tensor; a dynamic one begins where the context ends.
    if rope["rope_type"] not in ("linear", "yarn"):
        return
    # GGUF has the same words for the types.
    yield "rope.scaling.type", rope["rope_type"]
    yield "rope.scaling.factor", rope["factor"]
    if rope["rope_type"] == "yarn":
        yield "rope.scaling.original_context_length", rope["original_max_position_embeddings"]
        for theirs, ours in _YARN.items():
            if rope.get(theirs) is not None:
                yield ours, rope[theirs]


def rope_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Brings the ways of writing the rotary embedding (transformers 4 and 5, by kind of layer or not) to one.

    Args:
        config: Filled.

    Returns:
        `rope_theta`, `rope_type` and what the type needs, for layers that see the whole context.
    """
    stated = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = dict(stated.get("full_attention", stated))
    for key, default in (
        ("rope_theta", config.get("rope_theta", 10000.0)),
        ("rope_type", rope.get("type", "default")),
        ("original_max_position_embeddings", config.get("original_max_position_embeddings")),
        ("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)),
    ):
        if rope.get(key) is None:
            rope[key] = default
    if rope["original_max_position_embeddings"] is None:
        rope["original_max_position_embeddings"] = config.get("max_position_embeddings")
    return rope


def _window_theta(config: Mapping[str, Any]) -> float:
    window = (config.get("rope_parameters") or {}).get("sliding_attention", {})
    return float(window.get("rope_theta", config["rope_local_base_freq"]))


def _long_attention_factor(config: Mapping[str, Any], rope: Mapping[str, Any]) -> float:
    """LongRoPE (arXiv 2402.13753), as `conversion/phi.py` has it."""
    original = rope["original_max_position_embeddings"]
    scale = config["max_position_embeddings"] / original
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1.0 else 1.0


def rotary_factors(config: Mapping[str, Any]) -> dict[str, list[float]]:
    """Returns the factors that divide the rotary frequencies, by the GGUF name of the tensor that holds them."""
    rope = rope_of(config)
    if rope["rope_type"] == "llama3":
        return {"rope_freqs.weight": _llama3_factors(config, rope)}
    if rope["rope_type"] in _LONG_FACTORS:
        return {
            "rope_factors_long.weight": list(rope["long_factor"]),
            "rope_factors_short.weight": list(rope["short_factor"]),
        }
    return {}


def _llama3_factors(config: Mapping[str, Any], rope: Mapping[str, Any]) -> list[float]:
    """Llama 3.1's scaling: waves longer than the old context are stretched, short ones are kept."""
    import numpy as np

    size = head_size(config)
    # In float32, as torch has it: the last bits count. Powers are rounded once, for numpy's differ between CPUs.
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    powers = [np.float32(math.pow(rope["rope_theta"], exponent)) for exponent in exponents]
    frequencies = [np.float32(1.0) / power for power in powers]
    low, high = rope.get("low_freq_factor", 1.0), rope.get("high_freq_factor", 4.0)
    factor, old = rope["factor"], rope["original_max_position_embeddings"]
    factors = []
    for frequency in frequencies:
        wave = np.float32(2 * math.pi) / frequency
        if wave < old / high:
            factors.append(1.0)
        elif wave > old / low:
            factors.append(float(factor))
        else:
            smooth = (np.float32(old) / wave - np.float32(low)) / np.float32(high - low)
            factors.append(float(1 / ((1 - smooth) / np.float32(factor) + smooth)))
    return factors


def _layers(config: Mapping[str, Any]) -> range:
    return range(config["num_hidden_layers"])


def _problem(key: str, what: str) -> Problem:
    return Problem(where=f"config.json: {key}", what=what)
