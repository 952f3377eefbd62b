"""Hashes of rows in their one form: what tells equal rows, and where a split gets its chance from."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tunerun.data.rows import Content, Labelled, Preference, Text

# For more at once hashlib gives up the interpreter lock, and getting it back takes longer than the hash.
_HELD_BYTES = 2047
_DIGEST_BYTES = 8


class Ledger:
    """Remembers of every usable row where it is and two hashes: 32 bytes each."""

    def __init__(self) -> None:
        """Starts without rows."""
        self._file_numbers: dict[str, int] = {}
        self._source_numbers: dict[str, int] = {}
        self._contents, self._keys = array("Q"), array("Q")
        self._files, self._sources, self._lines = array("i"), array("i"), array("q")

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, file: str, line: int, source: str, value: Content) -> int:
        """Remembers a row and returns its number.

        Args:
            file: The file it is in.
            line: The line it starts in.
            source: What it is counted under.
            value: The row in its one form.
        """
        content, key = row_keys(value)
        self._contents.append(content)
        self._keys.append(key)
        self._files.append(self._file_numbers.setdefault(file, len(self._file_numbers)))
        self._sources.append(self._source_numbers.setdefault(source, len(self._source_numbers)))
        self._lines.append(line)
        return len(self._keys) - 1

    @property
    def contents(self) -> npt.NDArray[np.uint64]:
        """Hash of each row without its system prompt and tools, shape [rows]."""
        return np.array(self._contents, np.uint64)

    @property
    def keys(self) -> npt.NDArray[np.uint64]:
        """Hash of each row, shape [rows]."""
        return np.array(self._keys, np.uint64)

    @property
    def sources(self) -> npt.NDArray[np.int64]:
        """Number of each row's source, shape [rows]."""
        return np.array(self._sources, np.int64)

    @property
    def files(self) -> npt.NDArray[np.int64]:
        """Number of each row's file, shape [rows]."""
        return np.array(self._files, np.int64)

    @property
    def lines(self) -> npt.NDArray[np.int64]:
        """Line of each row in its file, shape [rows]."""
        return np.array(self._lines, np.int64)

    def place(self, row: int) -> tuple[str, int]:
        """Returns the file and the line of a row."""
        return list(self._file_numbers)[self._files[row]], self._lines[row]


def row_keys(value: Content) -> tuple[int, int]:
    """Returns two 64-bit hashes of a row: without its system prompts, tools and label, and of all it says."""
    if isinstance(value, Text):
        content = _hash(value.text)
        return content, content
    if isinstance(value, Preference):
        sides = zip(row_keys(value.chosen), row_keys(value.rejected), strict=True)
        content, key = (_hash(f"{chosen}\0{rejected}") for chosen, rejected in sides)
        return content, key
    if isinstance(value, Labelled):
        content, key = row_keys(value.conversation)
        return content, _hash(f"{key}\0{value.desirable}")
    messages = value.messages
    rest: list[Any] = [value.tools] if value.tools else []
    if messages[0]["role"] == "system":
        rest.append(messages[0]["content"])
        messages = messages[1:]
    content = _hash("\0".join([_text(message) for message in messages]))
    if value.untrained:
        rest.append(sorted(value.untrained))
    return content, _hash(f"{content}\0{_json(rest)}") if rest else content


def _text(message: Mapping[str, Any]) -> str:
    if len(message) == 2:
        # Nearly all messages are a role and a text; JSON takes longer than the hash.
        return f"{message['role']}\0{message['content']}"
    return _json(message)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _hash(text: str) -> int:
    data = text.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for start in range(0, len(data), _HELD_BYTES):
        digest.update(data[start : start + _HELD_BYTES])
    return int.from_bytes(digest.digest(), "little")
