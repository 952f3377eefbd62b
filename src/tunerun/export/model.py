"""All of a model but its weights, read and checked before a file is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunerun.chat.template import ChatTemplate, without_generation_blocks
from tunerun.chat.tokenizer import Tokenizer
from tunerun.errors import Problem, UserError
from tunerun.export.parameters import check_config, fill_config
from tunerun.export.special import SpecialTokens
from tunerun.export.tensors import Computed, Source, name_tensors
from tunerun.export.vocabulary import Vocabulary, read_vocabulary
from tunerun.formats.architectures import GGUF_ARCHITECTURES, Architecture
from tunerun.formats.gguf_header import TOKEN_EMBEDDING
from tunerun.formats.merged import MergePlan


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """All of a model but its weights."""

    folder: Path
    """With its tokenizer and its generation settings."""
    name: str
    architecture: Architecture
    config: Mapping[str, Any]
    """config.json, with what transformers fills in."""
    sources: Mapping[str, Source | Computed]
    """By GGUF name, in the order of the file."""
    vocabulary: Vocabulary
    special: SpecialTokens
    template: str | None


def read_model(
    folder: Path,
    name: str,
    *,
    weights: MergePlan,
    tokenizer: Tokenizer,
    special: SpecialTokens,
    template: ChatTemplate | None,
) -> Model:
    """Reads and checks a model.

    Args:
        folder: Holds the tokenizer and the generation settings.
        name: Shown to users of the files.
        weights: config.json and where the weights come from.
        tokenizer: Of the folder.
        special: Of the tokenizer and the template.
        template: Embedded in the files, if any.

    Raises:
        UserError: The architecture is not supported, or a part is missing, broken or has no equal in llama.cpp.
    """
    architecture = find_architecture(weights.config, folder)
    config = fill_config(weights.config, architecture)
    problems = check_config(config, architecture) + _check_head(config, architecture)
    if problems:
        raise UserError(problems)
    sources = name_tensors(weights.tensors, config, architecture, folder)
    vocabulary = read_vocabulary(
        folder,
        vocab_size=sources[TOKEN_EMBEDDING].shape[0],
        named=frozenset(tokenizer.named.values()),
        plain_added_tokens=architecture.plain_added_tokens,
        chat_starts_special=special.starts_chats,
    )
    return Model(
        folder=folder,
        name=name,
        architecture=architecture,
        config=config,
        sources=sources,
        vocabulary=vocabulary,
        special=special,
        template=without_generation_blocks(template.text) if template else None,
    )


def find_architecture(config: Mapping[str, Any], folder: Path) -> Architecture:
    """Returns the facts about the class that config.json names.

    Raises:
        UserError: There are none.
    """
    named = config.get("architectures") or []
    for name in named:
        if name in GGUF_ARCHITECTURES:
            return GGUF_ARCHITECTURES[name]
    what = f"GGUF export of {', '.join(named) or 'a model that names no architecture'} is not supported."
    where = f"{folder / 'config.json'}: architectures"
    raise UserError(Problem(where=where, what=what, fix=f"Supported: {', '.join(GGUF_ARCHITECTURES)}."))


def _check_head(config: Mapping[str, Any], architecture: Architecture) -> list[Problem]:
    if architecture.has_head or config.get("tie_word_embeddings", False):
        return []
    what = f"llama.cpp's {architecture.name} takes the embedding for its output head, and this model has both."
    fix = "Train without embed_tokens and lm_head among target_modules and modules_to_save."
    return [Problem(where="config.json: tie_word_embeddings", what=what, fix=fix)]
