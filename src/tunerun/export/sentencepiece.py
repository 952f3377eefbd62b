"""SentencePiece vocabularies: tokenizer.model, and a tokenizer.json that was made from one.

tokenizer.model is a protocol buffer; of its messages only the pieces are read.
Format: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunerun.errors import Problem, UserError
from tunerun.export.pretokenizer import unsupported

FILE = "tokenizer.model"

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""`enum llama_token_type` of llama.cpp, which are SentencePiece's numbers."""

_SPACE = "▁"
_PREPEND = {"type": "Prepend", "prepend": _SPACE}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_PIECES, _TEXT, _SCORE, _TYPE = 1, 1, 2, 3
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A token."""

    text: str
    score: float
    type: int


def read_pieces(folder: Path) -> list[Piece]:
    """Reads the pieces of tokenizer.model by id; none when there is no such file.

    Raises:
        UserError: The file is no SentencePiece model.
    """
    file = folder / FILE
    if not file.is_file():
        return []
    try:
        pieces = [_piece(value) for field, value in _fields(file.read_bytes()) if field == _PIECES]
    except (ValueError, IndexError, struct.error, TypeError) as error:
        raise UserError(Problem(where=str(file), what=f"is no SentencePiece model ({error}).")) from None
    if not pieces:
        raise UserError(Problem(where=str(file), what="is no SentencePiece model: it has no pieces."))
    return pieces


def is_byte(text: str) -> bool:
    """Says whether a token stands for one byte, as `<0x0A>` does."""
    return re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", text) is not None


def check(file: Path, data: Mapping[str, Any]) -> list[Problem]:
    """Finds what llama.cpp's SentencePiece has no equal for.

    Args:
        file: tokenizer.json, for messages.
        data: Its content; byte_fallback is set.
    """
    model = data["model"]
    problems = []
    if model.get("type") != "BPE":
        problems.append(unsupported(file, "model", model.get("type"), "BPE"))
    for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(field):
            problems.append(unsupported(file, f"model.{field}", model[field], "none"))
    if _scheme(data) is None:
        supported = "spaces become U+2581, with or without one put before the text"
        shown = {"normalizer": data["normalizer"], "pre_tokenizer": data["pre_tokenizer"]}
        problems.append(unsupported(file, "normalizer", shown, supported))
    return problems


def adds_space(data: Mapping[str, Any], *, chat_starts_special: bool) -> bool:
    """Says whether llama.cpp has to put a space before text, at the beginning and after every special token.

    Tokenizers that put one only before the very first text cannot be put so. A prompt that begins with a special
    token then has none.

    Args:
        data: Content of tokenizer.json.
        chat_starts_special: Whether prompts begin with a special token.
    """
    scheme = _scheme(data)
    return scheme == "always" or (scheme == "first" and not chat_starts_special)


def _scheme(data: Mapping[str, Any]) -> Literal["always", "first", "never"] | None:
    """Returns where a space is put before text; None for a tokenizer that does something else as well."""
    match data["normalizer"], data["pre_tokenizer"]:
        case {"type": "Sequence", "normalizers": [first, second]}, None if first == _PREPEND and second == _REPLACE:
            return "always"
        case {"type": "Replace"} as replace, (None | {"type": "Split", "pattern": {"String": " "}}) if (
            replace == _REPLACE
        ):
            # A split at spaces finds none any more.
            return "never"
        case None, {"type": "Metaspace", "replacement": "▁", **rest} if _splits_nothing(data, rest):
            scheme = rest.get("prepend_scheme", "always" if rest.get("add_prefix_space", True) else "never")
            return scheme if scheme in ("always", "first", "never") else None
        case _:
            return None


def _splits_nothing(data: Mapping[str, Any], metaspace: Mapping[Any, Any]) -> bool:
    """Says whether splitting at spaces changes no token: when a space is only ever the first character of one."""
    return not metaspace.get("split", True) or not any(_SPACE in text[1:] for text in data["model"]["vocab"])


def _piece(message: Any) -> Piece:
    text, score, kind = b"", 0.0, NORMAL
    for field, value in _fields(message):
        if field == _TEXT:
            text = bytes(value)
        elif field == _SCORE:
            (score,) = struct.unpack("<f", value)
        elif field == _TYPE:
            kind = int(value)
    # llama.cpp's converter tells these apart only by what SentencePiece says of the piece, and it has no word for them.
    return Piece(text=text.decode(), score=score, type=NORMAL if kind == USER_DEFINED else kind)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yields number and value of each field of a protocol buffer message."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == _VARINT:
            value: Any
            value, position = _varint(message, position)
        elif kind in (_FIXED64, _FIXED32, _BYTES):
            size = 8 if kind == _FIXED64 else 4
            if kind == _BYTES:
                size, position = _varint(message, position)
            value, position = message[position : position + size], position + size
            if position > len(message):
                raise ValueError("it is cut short")
        else:
            raise ValueError(f"field of kind {kind}")
        yield tag >> 3, value


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if not byte & 0x80:
            return value, position
