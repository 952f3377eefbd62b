"""The vocabulary of a model as GGUF holds it: byte-level BPE, or SentencePiece with bytes to fall back on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunerun.chat.tokenizer import TOKENIZER, TOKENIZER_CONFIG, read_object
from tunerun.errors import Problem, UserError
from tunerun.export import pretokenizer, sentencepiece
from tunerun.export.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Piece

# What the converter gives to tokens that no merge makes.
_ADDED_SCORE, _PADDING_SCORE = -1000.0, -10000.0
_SPECIAL_LOOKS = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
_SPECIAL_TEXTS = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """Tokens by id, padded to the rows of the embedding."""

    kind: Literal["gpt2", "llama"]
    """llama.cpp's word for byte-level BPE and for SentencePiece."""
    pre_tokenizer: str
    """llama.cpp's name for how text is split before merges apply."""
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...] | None = None
    """SentencePiece merges what gives the highest; byte-level BPE has a list of merges instead."""
    adds_space: bool = False
    """Whether text after a special token, or at the beginning, gets a space put before it; SentencePiece only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Words:
    """What tokenizer.json says, checked."""

    texts: Mapping[int, str]
    """By id, added tokens included."""
    added: Mapping[int, Mapping[str, Any]]
    named: frozenset[str]
    plain_added_tokens: bool


def read_vocabulary(
    folder: Path, *, vocab_size: int, named: frozenset[str], plain_added_tokens: bool, chat_starts_special: bool
) -> Vocabulary:
    """Reads tokenizer.json, and tokenizer.model for its scores when it is there.

    Args:
        folder: A model folder.
        vocab_size: Rows of the embedding; ids without a token become unused `[PAD<id>]`.
        named: Texts that tokenizer_config.json names as special (`eos_token`, ...).
        plain_added_tokens: Whether added tokens are special only when they say so, and not also when they look it.
        chat_starts_special: Whether prompts begin with a special token.

    Raises:
        UserError: The tokenizer is missing, has more tokens than the embedding has rows, or works in a way that
            llama.cpp has no equal for.
    """
    file = folder / TOKENIZER
    data = read_object(file)
    if not data:
        raise UserError(Problem(where=str(folder), what=f"there is no {TOKENIZER}.", fix="GGUF needs one."))
    bytes_fall_back = bool(data["model"].get("byte_fallback"))
    problems = sentencepiece.check(file, data) if bytes_fall_back else pretokenizer.check(file, data)
    if problems:
        raise UserError(problems)
    added = {entry["id"]: entry for entry in data["added_tokens"]}
    texts = {number: text for text, number in data["model"]["vocab"].items()}
    texts |= {number: entry["content"] for number, entry in added.items()}
    if max(texts) >= vocab_size:
        what = f"it has a token {max(texts)}, and the embedding has {vocab_size} rows."
        raise UserError(Problem(where=str(file), what=what, fix="Resize the embedding, or use its own tokenizer."))
    words = _Words(texts=texts, added=added, named=named, plain_added_tokens=plain_added_tokens)
    if not bytes_fall_back:
        return _byte_level(data, words, vocab_size)
    pieces = _pieces(folder, data, words, vocab_size)
    return Vocabulary(
        kind="llama",
        pre_tokenizer="default",
        tokens=tuple(piece.text for piece in pieces),
        types=tuple(piece.type for piece in pieces),
        scores=tuple(piece.score for piece in pieces),
        adds_space=sentencepiece.adds_space(data, chat_starts_special=chat_starts_special),
    )


def _byte_level(data: Mapping[str, Any], words: _Words, vocab_size: int) -> Vocabulary:
    pieces = [_padding(number) for number in range(vocab_size)]
    for number, text in words.texts.items():
        entry = words.added.get(number)
        pieces[number] = _added(entry, words) if entry else Piece(text=text, score=0.0, type=NORMAL)
    return Vocabulary(
        kind="gpt2",
        pre_tokenizer=pretokenizer.name(data),
        tokens=tuple(piece.text for piece in pieces),
        types=tuple(piece.type for piece in pieces),
    )


def _pieces(folder: Path, data: Mapping[str, Any], words: _Words, vocab_size: int) -> list[Piece]:
    """Takes scores and types from tokenizer.model as llama.cpp's converter does, or else works them out."""
    pieces = [_padding(number) for number in range(vocab_size)]
    stated = sentencepiece.read_pieces(folder)
    ranks = {} if stated else _ranks(data)
    for number, text in words.texts.items():
        if number < len(stated):
            pieces[number] = stated[number]
        elif number not in words.added:
            kind = BYTE if sentencepiece.is_byte(text) else UNKNOWN if text == data["model"]["unk_token"] else NORMAL
            pieces[number] = Piece(text=text, score=-float(ranks.get(text, len(ranks))), type=kind)
    # The converter overrides what this file lists; other tools leave it out.
    listed = read_object(folder / TOKENIZER_CONFIG).get("added_tokens_decoder", {})
    for number, entry in words.added.items():
        same = pieces[number].text == entry["content"] and pieces[number].type in (CONTROL, UNKNOWN)
        if words.plain_added_tokens or not same or str(number) in listed:
            pieces[number] = _added(entry, words)
    problems = _disagreements(folder, pieces, words) if stated else []
    if problems:
        raise UserError(problems)
    return pieces


def _ranks(data: Mapping[str, Any]) -> dict[str, int]:
    """Returns the place of the first merge that makes each token.

    SentencePiece's scores order its merges; tokenizer.json holds the merges in that order.
    """
    ranks: dict[str, int] = {}
    for place, merge in enumerate(data["model"]["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, place)
    return ranks


def _disagreements(folder: Path, pieces: list[Piece], words: _Words) -> list[Problem]:
    for number, text in words.texts.items():
        if number not in words.added and pieces[number].text != text:
            what = f"token {number} is {pieces[number].text!r} here and {text!r} in {TOKENIZER}."
            fix = f"Remove {sentencepiece.FILE} if {TOKENIZER} is the one that was trained with."
            return [Problem(where=str(folder / sentencepiece.FILE), what=what, fix=fix)]
    return []


def _added(entry: Mapping[str, Any], words: _Words) -> Piece:
    text: str = entry["content"]
    special = entry["special"] or text in words.named or (not words.plain_added_tokens and _looks_special(text))
    if not special and not words.plain_added_tokens:
        # llama.cpp looks for such tokens before it makes spaces visible.
        text = text.replace("▁", " ")
    return Piece(text=text, score=_ADDED_SCORE, type=CONTROL if special else USER_DEFINED)


def _looks_special(text: str) -> bool:
    # llama.cpp's converter takes such texts for control tokens whatever the flag says.
    framed = any(text.startswith(start) and text.endswith(end) for start, end in _SPECIAL_LOOKS)
    return framed or text in _SPECIAL_TEXTS


def _padding(number: int) -> Piece:
    return Piece(text=f"[PAD{number}]", score=_PADDING_SCORE, type=UNUSED)
