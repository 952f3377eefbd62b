"""A conversation with a local engine: what has been said, and how the next answer is asked for."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tunerun.chat.faults import ChatFault
from tunerun.chat.template import ChatTemplate
from tunerun.errors import UserError
from tunerun.serve.local import LocalEngine, PromptRefused
from tunerun.serve.protocol import Generate, Text

_TOO_LONG = "context_length_exceeded"
# Kept free for an answer of any length: rather than to cut it short, the oldest turns are forgotten.
_ROOM_TOKENS = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are chosen."""

    max_new_tokens: int | None
    """Longest answer, where the context has room for it; None fills the context."""
    temperature: float
    """0 takes the likeliest token."""
    top_k: int
    """0 keeps all tokens."""
    top_p: float
    seed: int
    stop: tuple[str, ...]


@dataclass(kw_only=True, slots=True)
class Conversation:
    """What was said so far; without a chat template, each text is continued by itself."""

    engine: LocalEngine
    template: ChatTemplate | None
    sampling: Sampling
    adapter: str | None = None
    """Name of the adapter that answers, as the engine knows it."""
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)
    """Questions and answers in turn, each with `role` and `content`."""
    forgotten: int = 0
    """Turns dropped from the beginning, for the context holds no more."""
    retries: int = 0
    """How often the last question was answered before; every time has a seed of its own."""

    def messages(self) -> list[dict[str, str]]:
        """Returns the conversation as OpenAI messages."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return system + self.turns

    def pairs(self) -> list[tuple[str, str]]:
        """Returns questions with their answers."""
        contents = [turn["content"] for turn in self.turns]
        return list(zip(contents[::2], contents[1::2], strict=True))

    def back_before(self, number: int) -> bool:
        """Forgets a question, counted from 1, and all after it; returns whether there is one with this number."""
        if not 1 <= number <= len(self.turns) // 2:
            return False
        del self.turns[2 * (number - 1) :]
        return True

    def undo(self) -> str | None:
        """Forgets the last question with its answer and returns it; None when there is none."""
        if not self.turns:
            return None
        question = self.turns[-2]["content"]
        del self.turns[-2:]
        return question

    def ask(self, question: str, *, retries: int = 0) -> Generator[str, None, None]:
        """Yields the answer in pieces; question and answer are added to the conversation.

        When the iterator is closed early, what was said so far counts as the answer. The oldest turns are dropped when
        the context is full.

        Args:
            question: What the user says.
            retries: How often it was answered before, to choose other tokens this time.

        Raises:
            UserError: The question alone does not fit, or the chat template refuses it.
            StageError: The engine failed.
        """
        self.retries = retries
        self.turns.append({"role": "user", "content": question})
        said: list[str] = []
        try:
            for piece in self._pieces():
                said.append(piece)
                yield piece
        except UserError:
            said.clear()
            raise
        finally:
            if said:
                self.turns.append({"role": "assistant", "content": "".join(said)})
            else:
                # A question without an answer would make the next one its second half.
                self.turns.pop()

    def reset(self) -> None:
        """Forgets what was said; the system prompt stays."""
        self.turns.clear()

    def save(self, path: Path) -> None:
        """Adds the conversation to a JSON-lines file, as one line that `data.path` can read.

        Raises:
            OSError: The file cannot be written.
        """
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"messages": self.messages()}, ensure_ascii=False) + "\n")

    def _pieces(self) -> Iterator[str]:
        while True:
            try:
                for message in self.engine.answer(self._request()):
                    if isinstance(message, Text):
                        yield message.text
                    elif message.reason == "error":
                        raise UserError(f"the answer could not be computed: {message.message}.")
                return
            except PromptRefused as error:
                self._forget(error)

    def _request(self) -> Generate:
        sampling = self.sampling
        return Generate(
            id=-1,
            adapter=self.adapter,
            prompt=self._prompt(),
            plain=self.template is None,
            max_new_tokens=sampling.max_new_tokens,
            room=self._room(),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=(sampling.seed + self.retries) % (1 << 32),
            stop=sampling.stop,
        )

    def _room(self) -> int:
        """Returns how many tokens an answer gets at least: while there are turns to forget, all it may have."""
        if len(self.turns) == 1:
            return 1
        return min(self.sampling.max_new_tokens or _ROOM_TOKENS, self.engine.ready.context_tokens // 2)

    def _prompt(self) -> str:
        if self.template is None:
            return self.turns[-1]["content"]
        try:
            return self.template.render(self.messages(), generation_prompt=True)
        except ChatFault as error:
            raise UserError(f"{error.detail}.") from error

    def _forget(self, refusal: PromptRefused) -> None:
        """Drops the oldest question with its answer.

        Raises:
            UserError: Only the question itself is left, or the length is not what was refused.
        """
        if refusal.code != _TOO_LONG or len(self.turns) < 3:
            raise UserError(str(refusal)) from refusal
        del self.turns[:2]
        self.forgotten += 2
