"""The vocabulary of a byte-level BPE tokenizer as GGUF holds it, read from tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunerun.errors import Problem, UserError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""`enum llama_token_type` of llama.cpp."""

# The pre-tokenizers that llama.cpp has built in, by the pattern that tokenizer.json states.
_PRE_TOKENIZERS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": (
        "qwen2"
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """Tokens by id, padded to the rows of the embedding."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    pre_tokenizer: str
    """llama.cpp's name for how text is split before merges apply."""


def read_vocabulary(folder: Path, *, vocab_size: int, special: frozenset[str]) -> Vocabulary:
    """Reads tokenizer.json.

    Args:
        folder: A model folder.
        vocab_size: Rows of the embedding; ids without a token become unused `[PAD<id>]`.
        special: Texts that tokenizer_config.json names as special (`eos_token`, ...).

    Raises:
        UserError: The tokenizer is missing, has more tokens than the embedding has rows, or works in a way that
            llama.cpp has no equal for.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(Problem(where=str(folder), what="there is no tokenizer.json.", fix="GGUF needs one."))
    data = json.loads(file.read_text(encoding="utf-8"))
    problems = _check(file, data)
    if problems:
        raise UserError(problems)
    added = {entry["id"]: entry for entry in data["added_tokens"]}
    texts = {number: text for text, number in data["model"]["vocab"].items()}
    texts |= {number: entry["content"] for number, entry in added.items()}
    if max(texts) >= vocab_size:
        what = f"it has a token {max(texts)}, and the embedding has {vocab_size} rows."
        raise UserError(Problem(where=str(file), what=what, fix="Resize the embedding, or use its own tokenizer."))
    types = {number: _added_type(entry, special) for number, entry in added.items()}
    return Vocabulary(
        tokens=tuple(texts.get(number, f"[PAD{number}]") for number in range(vocab_size)),
        types=tuple(types.get(number, NORMAL if number in texts else UNUSED) for number in range(vocab_size)),
        pre_tokenizer=_PRE_TOKENIZERS[_split_pattern(data["pre_tokenizer"])],
    )


def _added_type(entry: Mapping[str, Any], special: frozenset[str]) -> int:
    text = entry["content"]
    # llama.cpp's converter takes such texts for control tokens whatever the flag says.
    looks_special = (text.startswith("<|") and text.endswith("|>")) or text in ("<pad>", "<mask>")
    return CONTROL if entry["special"] or text in special or looks_special else USER_DEFINED


def _check(file: Path, data: Mapping[str, Any]) -> list[Problem]:
    model = data["model"]
    problems = []
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        problems.append(_unsupported(file, "model", model.get("type"), "a byte-level BPE"))
    for field in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(field):
            problems.append(_unsupported(file, f"model.{field}", model[field], "none"))
    normalizer = data["normalizer"]
    # llama.cpp does not normalise; for NFC that shows only on text that is not composed.
    if normalizer is not None and normalizer.get("type") != "NFC":
        problems.append(_unsupported(file, "normalizer", normalizer, "none or NFC"))
    pattern = _split_pattern(data["pre_tokenizer"])
    if pattern not in _PRE_TOKENIZERS:
        what = "one of: " + ", ".join(sorted(set(_PRE_TOKENIZERS.values())))
        problems.append(_unsupported(file, "pre_tokenizer", pattern or data["pre_tokenizer"], what))
    return problems


def _split_pattern(pre_tokenizer: Any) -> str:
    """Returns the pattern of a split into words followed by bytes, or nothing for any other pre-tokenizer."""
    match pre_tokenizer:
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return pattern
        case _:
            return ""


def _unsupported(file: Path, field: str, value: Any, supported: str) -> Problem:
    what = f"llama.cpp has no tokenizer with {json.dumps(value, ensure_ascii=False)} here."
    return Problem(where=f"{file}: {field}", what=what, fix=f"Supported: {supported}.")
