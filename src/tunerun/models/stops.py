"""The tokens that end an answer. No torch."""

from __future__ import annotations

from pathlib import Path

from tunerun import artifacts
from tunerun.chat.tokenizer import Tokenizer

_CONFIGS = ("generation_config.json", "config.json")
# Tokens that end an assistant turn in the common chat templates, whether or not the model's config says so.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "</s>", "<|endoftext|>")


def stop_token_ids(folder: Path, tokenizer: Tokenizer) -> frozenset[int]:
    """Returns the tokens that end an answer: those of the model's configs, of its tokenizer, and known turn ends."""
    found: set[int] = set()
    for name in _CONFIGS:
        path = folder / name
        value = artifacts.read_json(path).get("eos_token_id") if path.is_file() else None
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    ids = [tokenizer.token_id("eos_token"), *map(tokenizer.backend.token_to_id, _TURN_ENDS)]
    return frozenset(found.union(token for token in ids if token is not None))
