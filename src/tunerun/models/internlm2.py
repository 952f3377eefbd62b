"""InternLM2 checkpoints written as Llama, which they are under other names; their own code need not run. No torch.

The rows of `wqkv` are grouped by key head: the queries of the head, then its key, then its value (InternLM2's
modeling_internlm2.py: `rearrange(qkv, "b q (h gs d) -> b q h gs d", gs=2 + groups)`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunerun import artifacts
from tunerun.artifacts import publish, write_json
from tunerun.errors import Problem, UserError
from tunerun.formats.safetensors import ModelWriter, TensorInfo, read_rows, read_table
from tunerun.models.folder import carry_files
from tunerun.progress import Progress

MODEL_TYPE = "internlm2"
_CONFIG = "config.json"
_SHARD_BYTES = 5 * 10**9
_NAMES = {
    "model.tok_embeddings.": "model.embed_tokens.",
    "output.": "lm_head.",
    ".attention.wo.": ".self_attn.o_proj.",
    ".feed_forward.w1.": ".mlp.gate_proj.",
    ".feed_forward.w3.": ".mlp.up_proj.",
    ".feed_forward.w2.": ".mlp.down_proj.",
    ".attention_norm.": ".input_layernorm.",
    ".ffn_norm.": ".post_attention_layernorm.",
}
_FUSED = re.compile(r"^(?P<layer>model\.layers\.\d+\.)attention\.wqkv\.(?P<kind>weight|bias)$")
# Keys of config.json that mean the same in both.
_SAME = (
    "bos_token_id", "dtype", "eos_token_id", "hidden_act", "hidden_size", "initializer_range", "intermediate_size",
    "max_position_embeddings", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "pad_token_id",
    "rms_norm_eps", "rope_scaling", "rope_theta", "tie_word_embeddings", "torch_dtype", "use_cache", "vocab_size",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Piece:
    """A tensor of the Llama model: some rows of a tensor of the InternLM2 model."""

    source: TensorInfo
    ranges: tuple[range, ...]
    """Rows of the source, in order; all of them for a tensor that only changes its name."""

    @property
    def shape(self) -> tuple[int, ...]:
        return sum(len(rows) for rows in self.ranges), *self.source.shape[1:]


def is_internlm2(folder: Path) -> bool:
    """Says whether a model folder holds an InternLM2 under its own names."""
    config = artifacts.read_json(folder / _CONFIG)
    return "model_type" in config and config["model_type"] == MODEL_TYPE


def write_as_llama(folder: Path, out: Path) -> None:
    """Writes an InternLM2 folder as a Llama folder, published atomically.

    Args:
        folder: config.json, tokenizer and safetensors weights.
        out: The Llama folder.

    Raises:
        UserError: The config or the weights are not those of an InternLM2; names each key or tensor at fault.
    """
    config = _llama_config(folder / _CONFIG)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    pieces = dict(_pieces(read_table(folder), heads=heads, kv_heads=kv_heads, width=config["hidden_size"] // heads))
    with publish(out) as staging:
        staging.mkdir()
        carry_files(folder, staging)
        write_json(staging / _CONFIG, config)
        _write(pieces, staging)


def _llama_config(file: Path) -> dict[str, Any]:
    config = artifacts.read_json(file)
    needed = ("hidden_size", "num_attention_heads", "num_key_value_heads")
    problems = [Problem(where=str(file), what=f"it has no {key}.") for key in needed if key not in config]
    if problems:
        raise UserError(problems)
    same = {key: config[key] for key in _SAME if key in config}
    bias = "bias" in config and bool(config["bias"])
    return {**same, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": bias}


def _pieces(table: Mapping[str, TensorInfo], *, heads: int, kv_heads: int, width: int) -> Iterator[tuple[str, _Piece]]:
    groups = heads // kv_heads
    rows = (heads + 2 * kv_heads) * width
    for name, info in table.items():
        match = _FUSED.match(name)
        if match is None:
            yield _renamed(name), _Piece(info, (range(info.rows),))
            continue
        if info.rows != rows:
            what = f"it has {info.rows} rows where {heads} heads and {kv_heads} key heads of {width} need {rows}."
            raise UserError(Problem(where=f"{info.file}: {name}", what=what))
        starts = range(0, rows, (groups + 2) * width)
        for part, first, count in (("q", 0, groups), ("k", groups, 1), ("v", groups + 1, 1)):
            taken = tuple(range(start + first * width, start + (first + count) * width) for start in starts)
            yield f"{match['layer']}self_attn.{part}_proj.{match['kind']}", _Piece(info, taken)


def _renamed(name: str) -> str:
    for ours, theirs in _NAMES.items():
        if (name.startswith(ours) and not ours.startswith(".")) or (ours.startswith(".") and ours in name):
            return name.replace(ours, theirs)
    return name


def _write(pieces: Mapping[str, _Piece], out: Path) -> None:
    slots = [(name, piece.source.dtype, piece.shape) for name, piece in pieces.items()]
    with (
        ModelWriter(out, slots, max_shard_size_bytes=_SHARD_BYTES) as writer,
        Progress("model", total=len(pieces), unit="tensors") as progress,
    ):
        for name, piece in pieces.items():
            if piece.shape == piece.source.shape:
                writer.copy(piece.source, name)
            else:
                first = 0
                for rows in piece.ranges:
                    writer.write_rows(name, first, read_rows(piece.source, rows.start, len(rows)))
                    first += len(rows)
            progress.advance(1)
