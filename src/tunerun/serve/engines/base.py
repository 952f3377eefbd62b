"""What an engine offers to the process that runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from tunerun.serve.protocol import Generate
from tunerun.serve.text import Decoder


class Engine(Protocol):
    """A loaded model with its tokenizer."""

    context_tokens: int
    """Prompt and answer together."""
    vocabulary: int
    """Number of token ids."""
    end_ids: frozenset[int]
    """Tokens that end an answer."""
    chat_template: str | None
    """Template inside the model file, when there is one."""
    bos_token: str
    eos_token: str

    def encode(self, text: str, *, plain: bool) -> list[int]:
        """Turns text into token ids; called while another thread generates.

        Args:
            text: Special tokens in it are recognised.
            plain: Whether the tokenizer adds the special tokens it puts around plain text.
        """

    def decoder(self) -> Decoder:
        """Returns a fresh decoder for one answer."""

    def generate(
        self, prompt_ids: Sequence[int], limit: int, request: Generate, cancelled: Callable[[], bool]
    ) -> Iterator[int]:
        """Yields up to `limit` tokens that follow a prompt; may end early at an end token, yielded or not.

        Args:
            prompt_ids: At least one token; with the answer at most `context_tokens`.
            limit: Most tokens to yield, at least one.
            request: How to choose tokens.
            cancelled: Asked now and then; True means that nobody waits for more.
        """
