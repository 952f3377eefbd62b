"""Renders conversations as they will be served and says which characters are trained.

A turn as it is served is the rendering of everything before it with the generation prompt, then what the model must
write: the answer and the token that ends the turn. Training rows are made of exactly that. Several turns share a row
only where the template renders an earlier turn, seen from later, as it was served; templates that change their history
(Qwen3 and R1 drop the reasoning) need a row for each turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tunerun.chat.faults import ChatFault
from tunerun.chat.pieces import locate, substitute
from tunerun.chat.sentinels import unused
from tunerun.chat.shapes import Shape, is_plain, shape_of, with_sentinels
from tunerun.chat.template import ChatTemplate, Message, Span
from tunerun.chat.tokenizer import Tokenizer

TrainOn = Literal["assistant", "last", "all"]
MultiTurn = Literal["whole", "split"]

Turns = tuple[int, ...]
"""Indices of the assistant messages that are trained."""


@dataclass(frozen=True, slots=True)
class MarkedText:
    """A rendering and what is trained in it."""

    text: str
    trained: tuple[Span, ...]
    """Character spans (start, end), in order, not overlapping."""

    def __len__(self) -> int:
        return len(self.text)


@dataclass(frozen=True, slots=True)
class Renderer:
    """A chat template, the tokens of the model it is for, and what of its renderings is trained."""

    template: ChatTemplate
    tokenizer: Tokenizer
    train_on: TrainOn = "assistant"
    multi_turn: MultiTurn = "whole"
    _shapes: dict[tuple[tuple[str, ...], Turns], Shape | None] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def rows(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, untrained: frozenset[int] = frozenset()
    ) -> list[MarkedText]:
        """Renders a conversation as training rows.

        Args:
            messages: OpenAI chat messages; tool-call arguments as objects; the last one from the assistant.
            tools: Function definitions, or None.
            untrained: Indices of assistant messages that are context only.

        Returns:
            One row, or one for each trained turn when `multi_turn` is `split`.

        Raises:
            ChatFault: The template refuses the conversation, or its trained text cannot be shown.
        """
        if self.train_on == "all":
            text = self.template.render(messages, tools)
            return [MarkedText(text, ((0, len(text)),))]
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        trained = turns[-1:] if self.train_on == "last" else turns
        trained = [index for index in trained if index not in untrained]
        if self.multi_turn == "split":
            return [self._row(messages[: index + 1], tools, (index,)) for index in trained]
        return [self._row(messages[: turns[-1] + 1], tools, tuple(trained))]

    def _row(self, messages: Sequence[Message], tools: Sequence[Any] | None, trained: Turns) -> MarkedText:
        """Renders a conversation that ends with an assistant message as one row."""
        if tools is None and is_plain(messages):
            shape = self._shape(messages, trained)
            if shape is not None:
                text = self.template.render(messages)
                spans = shape.fit([message["content"] for message in messages], text)
                if spans is not None:
                    return MarkedText(text, spans)
        return self._proved(messages, tools, trained)

    def _shape(self, messages: Sequence[Message], trained: Turns) -> Shape | None:
        key = (tuple(message["role"] for message in messages), trained)
        if key not in self._shapes:
            self._shapes[key] = self._prove_shape(with_sentinels(messages), trained)
        return self._shapes[key]

    def _prove_shape(self, sentinels: Sequence[Message], trained: Turns) -> Shape | None:
        try:
            row = self._proved(sentinels, None, trained)
        except ChatFault:
            # Each conversation of the shape says for itself what is wrong.
            return None
        # R1's row is not the rendering: its prompt may open with what the answer brings along.
        return shape_of(row.text, row.trained) if row.text == self.template.render(sentinels) else None

    def _proved(self, messages: Sequence[Message], tools: Sequence[Any] | None, trained: Turns) -> MarkedText:
        if self.template.has_markers:
            row = self._marked(messages, tools, trained)
        else:
            row = self._whole(messages, tools, trained)
        for tool in tools or ():
            if tool["function"]["name"] not in row.text:
                raise ChatFault("template-drops-tools", "the chat template does not show the model its tools.")
        return row

    def _whole(self, messages: Sequence[Message], tools: Sequence[Any] | None, trained: Turns) -> MarkedText:
        last = len(messages) - 1
        whole = self._served(messages, tools)
        spans: list[Span] = []
        for index in trained:
            turn = whole if index == last else self._served(messages[: index + 1], tools)
            start, end = turn.trained[0]
            if not whole.text.startswith(turn.text[:end]):
                detail = (
                    f"the chat template renders message {index + 1} otherwise once others follow; "
                    "data.multi_turn=split trains each turn as it is served."
                )
                raise ChatFault("history-differs", detail)
            spans.append((start, end))
        return MarkedText(whole.text, tuple(spans))

    def _served(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> MarkedText:
        """Renders a conversation up to an assistant turn as that turn is served, and proves the turn's text."""
        rendering = self.template.render(messages, tools)
        prompt = self.template.render(messages[:-1], tools, generation_prompt=True)
        changed, pieces = substitute(messages[-1], unused(rendering))
        if not pieces:
            raise ChatFault("empty-answer", "an assistant turn has no text.")
        with_sentinels = self.template.render([*messages[:-1], changed], tools)
        spans = locate(rendering, with_sentinels, pieces)
        first, last = spans[0][0], spans[-1][1]
        end = last + self._turn_end(rendering[last:])
        if rendering.startswith(prompt) and len(prompt) <= first:
            return MarkedText(rendering, ((len(prompt), end),))
        if not _same_opening(prompt, rendering[:first], messages[-2]["content"] if len(messages) > 1 else ""):
            detail = "the chat template's generation prompt is not how it opens an assistant turn."
            raise ChatFault("prompt-differs", detail)
        return MarkedText(prompt + rendering[first:], ((len(prompt), len(prompt) + end - first),))

    def _turn_end(self, tail: str) -> int:
        """Returns the length of the end of turn: through the first special token after the answer."""
        match = self.tokenizer.special.search(tail) if self.tokenizer.special else None
        if match is None and self.tokenizer.added is not None:
            # Some models do not flag the token that ends a turn; then it is the last thing of the turn.
            matches = list(self.tokenizer.added.finditer(tail))
            match = matches[-1] if matches and not tail[matches[-1].end() :].strip() else None
        if match is None:
            detail = (
                f"the chat template ends an assistant turn by {tail!r}, which holds no special token of this "
                "tokenizer; the model could not learn to stop."
            )
            raise ChatFault("no-end-of-turn", detail)
        return match.end()

    def _marked(self, messages: Sequence[Message], tools: Sequence[Any] | None, trained: Sequence[int]) -> MarkedText:
        text, spans = self.template.render_marked(messages, tools)
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if len(spans) != len(turns):
            detail = f"the chat template marks {len(spans)} trained texts in {len(turns)} assistant turns."
            raise ChatFault("wrong-markers", detail)
        chosen = [span for span, index in zip(spans, turns, strict=True) if index in trained]
        for start, end in chosen:
            if self.tokenizer.special is None or self.tokenizer.special.search(text, start, end) is None:
                detail = "the chat template's generation markers leave out the token that ends a turn."
                raise ChatFault("no-end-of-turn", detail)
        return MarkedText(text, tuple(chosen))


def _same_opening(prompt: str, opening: str, content: str) -> bool:
    """Returns whether a prompt opens the turn as the rendering does, though it may add to it or differ before.

    R1's prompt adds `<think>` to the opening; Mistral shows the system prompt only while the user's turn is the last.
    """
    if not content.strip():
        return prompt.startswith(opening)
    _, found, after_prompt = prompt.rpartition(content.strip())
    _, shown, after_content = opening.rpartition(content.strip())
    return bool(found and shown) and after_prompt.startswith(after_content)
