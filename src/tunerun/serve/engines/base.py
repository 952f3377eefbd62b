"""What an engine offers to the process that runs it.

An engine's module has a function `start`, which loads the model and returns a service. Engines that compute in this
process are `Engine`s behind the service of `worker`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from tunerun.serve.protocol import Cancel, EngineSpec, Generate, Message, Ready, Tokenize
from tunerun.serve.text import Decoder

Send = Callable[[Message], None]
"""Sends a message to the gateway; may be called on any thread."""


class Service(Protocol):
    """A loaded engine that answers the gateway's messages."""

    ready: Ready
    """What the gateway is told first."""

    def receive(self, message: Generate | Cancel | Tokenize) -> None:
        """Takes a message, on a thread of its own that reads the next one only afterwards; must not wait for long."""

    def run(self) -> int:
        """Does the engine's work on the main thread.

        Returns:
            The exit code of the process, when the engine can do no more; the gateway starts it again.
        """


Start = Callable[[EngineSpec, Send], Service]
"""Loads what a spec names. The process may be ended while it does, for the gateway may go away.

Raises TunerunError, OSError, ValueError or RuntimeError with words for the user when it cannot be loaded.
"""


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
