"""llama.cpp's name for how byte-level BPE splits text, found by the patterns that tokenizer.json states.

llama.cpp's converter knows tokenizers by the ids that they give to a probe text, so that it refuses every vocabulary
that was extended or made at home. The patterns do not change with the vocabulary. Names, and whether merges are
skipped for words that are tokens: llama.cpp, `src/llama-vocab.cpp`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunerun.errors import Problem

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENDS = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_PUNCTUATION = r"| ?[^\s\p{L}\p{N}]+[\r\n]*" + _ENDS
_LETTERS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_QWEN2 = _CONTRACTIONS + _LETTERS + r"|\p{N}" + _PUNCTUATION
_QWEN35 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _CONTRACTIONS + _LETTERS + r"|\p{N}{1,3}" + _PUNCTUATION
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_CASED_PUNCTUATION = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _ENDS
_TEKKEN = f"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*" + r"|\p{N}" + _CASED_PUNCTUATION
_GPT4O = (
    f"{_BEFORE}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}" + _CASED_PUNCTUATION
)
_DIGIT = r"\p{N}"

# By the patterns, each of which splits what the one before left, and by `ignore_merges`.
_NAMES = {
    ((_QWEN2,), False): "qwen2",
    ((_QWEN35,), False): "qwen35",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "dbrx",
    ((_TEKKEN,), True): "tekken",
    ((_GPT4O,), False): "gpt-4o",
    ((_GPT2,), False): "gpt-2",
    ((_DIGIT, _GPT2), False): "smollm",
}


def name(data: Mapping[str, Any]) -> str:
    """Returns llama.cpp's name for the splitting of a tokenizer.json that `check` has no complaint about."""
    patterns = _patterns(data["pre_tokenizer"])
    assert patterns is not None, "checked"
    return _NAMES[patterns, _ignores_merges(data)]


def check(file: Path, data: Mapping[str, Any]) -> list[Problem]:
    """Finds what llama.cpp's byte-level BPE has no equal for.

    Args:
        file: tokenizer.json, for messages.
        data: Its content.
    """
    model = data["model"]
    problems = []
    if model.get("type") != "BPE":
        problems.append(unsupported(file, "model", model.get("type"), "BPE, byte-level or with byte_fallback"))
    for field in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(field):
            problems.append(unsupported(file, f"model.{field}", model[field], "none"))
    normalizer = data["normalizer"]
    # llama.cpp does not normalise; for NFC that shows only on text that is not composed.
    if normalizer is not None and normalizer.get("type") != "NFC":
        problems.append(unsupported(file, "normalizer", normalizer, "none or NFC"))
    patterns = _patterns(data["pre_tokenizer"])
    if (patterns, _ignores_merges(data)) not in _NAMES:
        field = "pre_tokenizer"
        if (patterns, not _ignores_merges(data)) in _NAMES:
            field = "model.ignore_merges"
        what = "that of one of: " + ", ".join(sorted(_NAMES.values()))
        problems.append(unsupported(file, field, data["pre_tokenizer"], what))
    return problems


def unsupported(file: Path, field: str, value: Any, supported: str) -> Problem:
    """Says that llama.cpp has no equal for a part of tokenizer.json."""
    what = f"llama.cpp has no tokenizer with {json.dumps(value, ensure_ascii=False)} here."
    return Problem(where=f"{file}: {field}", what=what, fix=f"Supported: {supported}.")


def _ignores_merges(data: Mapping[str, Any]) -> bool:
    return bool(data["model"].get("ignore_merges"))


def _patterns(step: Any) -> tuple[str, ...] | None:
    """Returns the patterns of a pre-tokenizer, in order; None for one that cannot be put so."""
    match step:
        case {"type": "Sequence", "pretokenizers": [*steps]}:
            parts = [_patterns(part) for part in steps]
            return None if None in parts else tuple(pattern for part in parts if part for pattern in part)
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return (pattern,)
        case {"type": "Digits", "individual_digits": True}:
            return (_DIGIT,)
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": bool(splits)}:
            return (_GPT2,) if splits else ()
        case _:
            return None
