"""The tokenizer of a model folder: tokenizer.json run by the Rust `tokenizers`, and its named special tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunerun import artifacts
from tunerun.errors import Problem, UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"

# The names that templates see as variables (transformers: SPECIAL_TOKENS_ATTRIBUTES).
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A fast tokenizer and what the model folder says about its special tokens."""

    backend: Backend
    named: Mapping[str, str]
    """Text by name, such as `{"eos_token": "<|im_end|>"}`."""
    special: re.Pattern[str] | None
    """Matches any token flagged special; None when there is none."""
    added: re.Pattern[str] | None
    """Matches any added token, special or not."""
    sha256: str
    """Of tokenizer.json."""

    def token_id(self, name: str) -> int | None:
        """Returns the id of a named special token such as `eos_token`, or None when the model has none."""
        if name not in self.named:
            return None
        found: int | None = self.backend.token_to_id(self.named[name])
        return found

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Returns the token ids of a text; special tokens written out in it become those tokens.

        Args:
            text: Any.
            add_special_tokens: Whether to add what the tokenizer puts around a text, such as a first token.
        """
        return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Returns the text of token ids."""
        return str(self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens))


def load_tokenizer(folder: Path) -> Tokenizer:
    """Loads the tokenizer of a model folder.

    Args:
        folder: Holds tokenizer.json, and usually tokenizer_config.json.

    Raises:
        UserError: A file is missing or damaged.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        fix = "Save the tokenizer in its fast form (tokenizer.json) into the model folder."
        raise UserError(Problem(where=str(path), what="is missing.", fix=fix))
    # Imported here: who only reads what a folder says about its tokens does not need it.
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the Rust binding raises nothing narrower
        raise UserError(Problem(where=str(path), what=f"is not a tokenizer: {error}.")) from error
    # A tokenizer.json may carry settings of whoever saved it; cutting and filling are decided here.
    backend.no_truncation()
    backend.no_padding()
    added = backend.get_added_tokens_decoder().values()
    return Tokenizer(
        backend=backend,
        named=named_tokens(folder),
        special=_any_of([token.content for token in added if token.special]),
        added=_any_of([token.content for token in added]),
        sha256=artifacts.sha256(path),
    )


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a model folder; a file that is not there is an empty one.

    Raises:
        UserError: The file is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(Problem(where=str(path), what=f"is not valid JSON: {error}.")) from error
    if not isinstance(data, dict):
        raise UserError(Problem(where=str(path), what="is not a JSON object."))
    return data


def named_tokens(folder: Path) -> dict[str, str]:
    """Returns the texts of a model folder's special tokens by name, such as `{"eos_token": "<|im_end|>"}`.

    Raises:
        UserError: A file is damaged.
    """
    config = read_object(folder / TOKENIZER_CONFIG)
    if "added_tokens_decoder" not in config:
        # transformers reads the older file only then, and lets it win.
        config = {**config, **read_object(folder / SPECIAL_TOKENS_MAP)}
    found = {name: _content(config[name]) for name in NAMED_TOKENS if name in config}
    return {name: text for name, text in found.items() if text is not None}


def _content(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _any_of(texts: list[str]) -> re.Pattern[str] | None:
    # Longest first: `<s>` must not win over `<s>x`.
    ordered = sorted(set(texts), key=lambda text: (-len(text), text))
    return re.compile("|".join(re.escape(text) for text in ordered)) if ordered else None
