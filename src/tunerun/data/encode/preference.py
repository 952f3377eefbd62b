"""Preferences to pairs of samples that share their prompt's tokens, for dpo, orpo, simpo and reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tunerun.chat.faults import ChatFault
from tunerun.chat.mask import MarkedText, Renderer
from tunerun.data import lengths
from tunerun.data.encode import Encoder, Pair, Sample, sft
from tunerun.data.rows import Preference, RowFault


@dataclass(frozen=True, slots=True)
class PairText:
    """The renderings of a prompt with each of its two answers."""

    chosen: MarkedText
    rejected: MarkedText

    def __len__(self) -> int:
        return len(self.chosen) + len(self.rejected)


def encoder(renderer: Renderer) -> Encoder:
    """Returns the encoder of objectives that compare two answers.

    Args:
        renderer: One that renders a conversation as one row, and marks its assistant turns.
    """
    one = sft.encoder(renderer)

    def render(row: Preference) -> list[PairText]:
        (chosen,), (rejected,) = one.render(row.chosen), one.render(row.rejected)
        if _prompt(chosen) != _prompt(rejected):
            detail = "the chat template renders the prompt of the chosen answer otherwise than that of the rejected."
            raise ChatFault("prompts-differ", detail)
        return [PairText(chosen, rejected)]

    def encode_all(rows: Sequence[PairText]) -> list[list[Pair]]:
        samples = [sample for (sample,) in one.encode([text for row in rows for text in (row.chosen, row.rejected)])]
        return [[pair(*sides)] for sides in zip(samples[::2], samples[1::2], strict=True)]

    return Encoder(("pairs",), render, encode_all, one.template_sha256)


def pair(chosen: Sample, rejected: Sample) -> Pair:
    """Makes a pair of two tokenised conversations with one prompt.

    Where the last character of the prompt and the first of an answer share a token, the sides differ from there on:
    such a token is trained on both sides, as TRL does (`common_prefix_length` in its DPO trainer).
    """
    shorter = min(len(chosen[0]), len(rejected[0]))
    different = np.flatnonzero(chosen[0][:shorter] != rejected[0][:shorter])
    common = int(different[0]) if len(different) else shorter
    start = min(common, _first_trained(chosen), _first_trained(rejected))
    return Pair(_trained_from(chosen, start), _trained_from(rejected, start), start)


def fit(
    made: Pair, max_length: int, policy: lengths.Policy, added: npt.NDArray[Any]
) -> tuple[Pair | None, lengths.Cut]:
    """Makes both sides of a pair fit into a row, with the same prompt tokens.

    Args:
        made: A pair.
        max_length: Longest row, in tokens.
        policy: As for `lengths.fit`, which decides about the longer side; the other side gets the same prompt. `split`
            is not for pairs.
        added: Ids of the tokenizer's added tokens, which are never cut out of a prompt.

    Returns:
        The pair and what was shortened; None instead of a pair that the policy drops, or whose difference was cut off.

    Raises:
        RowFault: The pair is too long and the policy is `fail`, or both sides are the same tokens.
    """
    if np.array_equal(made.chosen[0], made.rejected[0]):
        raise RowFault("same-answers", "the chosen and the rejected answer are the same tokens.")
    assert policy != "split", "config/checks.py refuses to split pairs"
    sides = (made.chosen, made.rejected)
    longer = max(sides, key=lambda side: len(side[0]))
    fitted = lengths.fit(longer, max_length, policy, added)
    if len(longer[0]) <= max_length:
        return made, ""
    if not fitted.samples or not fitted.samples[0][1].any():
        return None, fitted.cut
    prompt = fitted.samples[0][0][: _first_trained(fitted.samples[0])]
    answer_cut = False
    shortened = []
    for tokens, trained in sides:
        tokens = np.concatenate([prompt, tokens[made.prompt_tokens :]])
        trained = np.concatenate([np.zeros(len(prompt), np.uint8), trained[made.prompt_tokens :]])
        answer_cut |= bool(trained[max_length:].any())
        shortened.append((tokens[:max_length], trained[:max_length]))
    chosen, rejected = shortened
    if np.array_equal(chosen[0], rejected[0]):
        return None, "answer"
    return Pair(chosen, rejected, len(prompt)), "answer" if answer_cut else "prompt"


def _prompt(row: MarkedText) -> str:
    return row.text[: row.trained[0][0]]


def _trained_from(sample: Sample, start: int) -> Sample:
    tokens, trained = sample
    trained = trained.copy()
    trained[start : _first_trained(sample)] = 1
    return tokens, trained


def _first_trained(sample: Sample) -> int:
    return int(np.argmax(sample[1]))
