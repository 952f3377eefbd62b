"""The bytes that each token of a byte-level tokenizer stands for.

Byte-level BPE (GPT-2's, used by Qwen, Llama 3 and others) loses nothing: the bytes of the tokens, one after the other,
are the text. Where they are, the place of every token in the text follows by adding up, and the tokenizer need not
keep offsets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as Backend
from tokenizers import decoders


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """What the tokens of a byte-level tokenizer stand for."""

    data: npt.NDArray[Any]
    """The bytes of all tokens, uint8."""
    starts: npt.NDArray[Any]
    """Where each token's bytes start in `data`, by id, int64."""
    sizes: npt.NDArray[Any]
    """How many bytes each token has, by id, int64."""

    def join(self, tokens: npt.NDArray[Any]) -> tuple[bytes, npt.NDArray[Any]]:
        """Returns the bytes of tokens, one after the other, and where each token ends in them, shape [tokens]."""
        sizes = self.sizes[tokens]
        ends = np.cumsum(sizes)
        places = np.repeat(self.starts[tokens] - (ends - sizes), sizes)
        places += np.arange(len(places))
        return self.data[places].tobytes(), ends


def token_bytes(backend: Backend) -> TokenBytes | None:
    """Returns what the tokens stand for, or None when the tokenizer is not byte-level."""
    if not isinstance(backend.decoder, decoders.ByteLevel):
        return None
    vocabulary = backend.get_vocab(with_added_tokens=False)
    added = backend.get_added_tokens_decoder()
    # A character for each byte. One that means no byte is never made from text; whoever uses this compares with it.
    spelled = "".join(vocabulary).translate(_alphabet()).encode("latin-1", errors="replace")
    written = [token.content.encode() for token in added.values()]
    numbers = np.array([*vocabulary.values(), *added], np.int64)
    sizes = np.array([*map(len, vocabulary), *map(len, written)], np.int64)
    table = np.zeros((2, int(numbers.max()) + 1), np.int64)
    # Ids of added tokens come last here, so that they win over an entry of the vocabulary.
    table[0, numbers], table[1, numbers] = np.cumsum(sizes) - sizes, sizes
    return TokenBytes(np.frombuffer(b"".join([spelled, *written]), np.uint8), table[0], table[1])


def _alphabet() -> dict[int, int]:
    """Returns which byte each character of a byte-level vocabulary means (GPT-2's encoder.py, `bytes_to_unicode`).

    Printable bytes of Latin-1 are themselves; the others, in order, are the characters from U+0100.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(0x100) if byte not in printable]
    return {0x100 + index: byte for index, byte in enumerate(others)}
