"""Labelled answers to samples with a label, for kto."""

from __future__ import annotations

from collections.abc import Sequence

from tunerun.chat.mask import MarkedText, Renderer
from tunerun.data.encode import Encoder, LabelledSample, sft
from tunerun.data.rows import Labelled, Preference


def encoder(renderer: Renderer) -> Encoder:
    """Returns the encoder of objectives that learn from answers labelled one by one.

    A preference is taken for two of them: its better answer is good, its worse one bad.

    Args:
        renderer: One that renders a conversation as one row, and marks its assistant turns.
    """
    one = sft.encoder(renderer)

    def render(row: Labelled | Preference) -> list[tuple[MarkedText, bool]]:
        if isinstance(row, Labelled):
            row_labels = [(row.conversation, row.desirable)]
        else:
            row_labels = [(row.chosen, True), (row.rejected, False)]
        return [(text, label) for conversation, label in row_labels for text in one.render(conversation)]

    def encode_all(rows: Sequence[tuple[MarkedText, bool]]) -> list[list[LabelledSample]]:
        encoded = one.encode([text for text, _ in rows])
        return [[LabelledSample(sample, label)] for (sample,), (_, label) in zip(encoded, rows, strict=True)]

    return Encoder(("labels", "pairs"), render, encode_all, one.template_sha256)
