"""Held-out rows as questions with the answers they should have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tunerun.formats.tokens import TokenStore
from tunerun.models.ask import Questions


def questions(store: TokenStore, like: Questions, *, count: int) -> tuple[Questions, list[str]]:
    """Takes the last answer of each of the first samples as what their other tokens ask for.

    Args:
        store: Token store.
        like: Tokenizer and stop tokens.
        count: Most samples; those without a question, without an answer or with an undesirable one are passed over.

    Returns:
        The questions, and the text of their answers.
    """
    asked: list[tuple[int, ...]] = []
    references: list[str] = []
    for row in range(len(store)) if store.labels is None else np.flatnonzero(store.labels).tolist():
        span = slice(int(store.offsets[row]), int(store.offsets[row + 1]))
        segments = store.segments[span]
        for places in np.split(np.arange(len(segments)), np.flatnonzero(np.diff(segments)) + 1):
            if len(asked) == count:
                break
            start, end = _last_answer(store.trained[span][places])
            if 0 < start < end:
                tokens = store.tokens[span][places].tolist()
                asked.append(tuple(tokens[:start]))
                references.append(_text(like, tokens[start:end]))
    texts = tuple(_text(like, tokens) for tokens in asked)
    return replace(like, texts=texts, token_ids=tuple(asked)), references


def _last_answer(trained: np.ndarray) -> tuple[int, int]:
    """Returns where the last run of trained tokens begins and ends; (0, 0) without one."""
    places = np.flatnonzero(trained)
    if not len(places):
        return 0, 0
    breaks = np.flatnonzero(np.diff(places) > 1)
    return int(places[breaks[-1] + 1 if len(breaks) else 0]), int(places[-1]) + 1


def _text(like: Questions, tokens: list[int] | tuple[int, ...]) -> str:
    return like.tokenizer.decode(tokens)
