"""Labelled answers to samples with a label, for kto."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunerun.chat.mask import MarkedText, Renderer
from tunerun.data.encode import Encoder, LabelledSample, sft
from tunerun.data.rows import Labelled, Preference


@dataclass(frozen=True, slots=True)
class LabelledText:
    """The rendering of a prompt with an answer that is good or bad."""

    text: MarkedText
    desirable: bool

    def __len__(self) -> int:
        return len(self.text)


def encoder(renderer: Renderer) -> Encoder:
    """Returns the encoder of objectives that learn from answers labelled one by one.

    A preference is taken for two of them: its better answer is good, its worse one bad.

    Args:
        renderer: One that renders a conversation as one row, and marks its assistant turns.
    """
    one = sft.encoder(renderer)

    def render(row: Labelled | Preference) -> list[LabelledText]:
        if isinstance(row, Labelled):
            judged = [(row.conversation, row.desirable)]
        else:
            judged = [(row.chosen, True), (row.rejected, False)]
        return [LabelledText(text, label) for conversation, label in judged for text in one.render(conversation)]

    def encode_all(rows: Sequence[LabelledText]) -> list[list[LabelledSample]]:
        encoded = one.encode([row.text for row in rows])
        return [[LabelledSample(sample, row.desirable)] for (sample,), row in zip(encoded, rows, strict=True)]

    return Encoder(("labels", "pairs"), render, encode_all, one.template_sha256)
