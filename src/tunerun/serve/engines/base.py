"""What an engine offers to the process that runs it.

An engine's module has a function `start`, which loads the model and returns a service. Engines that compute in this
process are `Engine`s behind the service of `worker`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tunerun.serve.protocol import Ability, Cancel, EngineSpec, Generate, Message, Ready, Tokenize
from tunerun.serve.text import Decoder

Send = Callable[[Message], None]
"""Sends a message to the gateway; may be called on any thread."""


class Loaded(Protocol):
    """What the gateway is told of a loaded model."""

    @property
    def context_tokens(self) -> int:
        """Prompt and answer together."""

    @property
    def chat_template(self) -> str | None:
        """Template inside a model file; None where the gateway reads it from the model's folder."""

    @property
    def bos_token(self) -> str:
        """Text of the token that begins a text; empty when there is none."""

    @property
    def eos_token(self) -> str:
        """Text of the token that ends a text; empty when there is none."""


def ready(model: Loaded, abilities: tuple[Ability, ...]) -> Ready:
    """Returns what the gateway is told first."""
    return Ready(
        context_tokens=model.context_tokens,
        chat_template=model.chat_template,
        bos_token=model.bos_token,
        eos_token=model.eos_token,
        abilities=abilities,
    )


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


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token of an answer."""

    token: int
    logprob: float = 0.0
    """Its logarithmic probability at temperature 1, in nats; told when the request asks for it."""
    top: tuple[tuple[int, float], ...] = ()
    """Ids and logarithmic probabilities of the likeliest tokens, in order."""


class Engine(Loaded, Protocol):
    """A loaded model with its tokenizer. Answers are computed in turns, each as if it were alone."""

    slots: int
    """Most answers that are computed at a time: each has a key-value cache."""
    vocabulary: int
    """Number of token ids."""
    abilities: tuple[Ability, ...]

    def encode(self, text: str, *, plain: bool) -> list[int]:
        """Turns text into token ids; called while another thread generates.

        Args:
            text: Special tokens in it are recognised.
            plain: Whether the tokenizer adds the special tokens it puts around plain text.
        """

    def decoder(self) -> Decoder:
        """Returns a fresh decoder for one answer."""

    def piece(self, token: int) -> bytes:
        """Returns the bytes that a token stands for."""

    def ends(self, token: int) -> bool:
        """Says whether a token ends an answer."""

    def fault(self, request: Generate) -> str | None:
        """Says what of a request, besides its tokens, cannot be done; called while another thread generates."""

    def generate(
        self, prompt_ids: Sequence[int], limit: int, request: Generate
    ) -> Generator[Chosen | None, None, None]:
        """Yields up to `limit` tokens that follow a prompt; may end early at an end token, yielded or not.

        Up to `slots` generators are open at a time. Each takes a slot when it starts and gives it back when it ends or
        is closed.

        Args:
            prompt_ids: At least one token; with the answer at most `context_tokens`.
            limit: Most tokens to yield, at least one.
            request: How to choose tokens.

        Yields:
            A token, or None after a part of a long prompt.
        """
