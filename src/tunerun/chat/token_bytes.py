"""The bytes that each token of a byte-level tokenizer stands for.

Byte-level BPE (GPT-2's, used by Qwen, Llama 3 and others) loses nothing: the bytes of the tokens, one after the other,
are the text. Where they are, the place of every token in the text follows by adding up, and the tokenizer need not
keep offsets.
"""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import decoders


class TokenBytes(dict[int, bytes]):
    """What tokens stand for, by id; each is looked up when it is first met, for a vocabulary is large."""

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self._backend, self._alphabet = backend, _alphabet()
        self.sizes = np.zeros(backend.get_vocab_size(), np.int64)
        """Lengths in bytes of the tokens met so far, by id."""
        for number, token in backend.get_added_tokens_decoder().items():
            self._put(number, token.content.encode())

    def __missing__(self, number: int) -> bytes:
        spelled = self._backend.id_to_token(number)
        assert spelled is not None, "the tokenizer made the token"
        # One that spells no bytes is never made from text; whoever uses the table compares with the text.
        piece = spelled.translate(self._alphabet).encode("latin-1", errors="replace")
        self._put(number, piece)
        return piece

    def _put(self, number: int, piece: bytes) -> None:
        if number >= len(self.sizes):
            # Some vocabularies leave numbers out.
            self.sizes = np.concatenate([self.sizes, np.zeros(number + 1, np.int64)])
        self[number], self.sizes[number] = piece, len(piece)


def token_bytes(backend: Backend) -> TokenBytes | None:
    """Returns what the tokens stand for, or None when the tokenizer is not byte-level."""
    return TokenBytes(backend) if isinstance(backend.decoder, decoders.ByteLevel) else None


def _alphabet() -> dict[int, int]:
    """Returns which byte each character of a byte-level vocabulary means (GPT-2's encoder.py, `bytes_to_unicode`).

    Printable bytes of Latin-1 are themselves; the others, in order, are the characters from U+0100.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(0x100) if byte not in printable]
    return {0x100 + index: byte for index, byte in enumerate(others)}
