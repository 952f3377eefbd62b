from __future__ import annotations

import numpy as np
import pytest

from tunerun.data.lengths import fit
from tunerun.data.rows import RowFault

ADDED = np.array([900, 901])


def sample(*parts: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Parts of (length, trained), each between two added tokens; the tokens count up."""
    tokens: list[int] = []
    trained: list[int] = []
    for length, flag in parts:
        tokens += [900, *range(len(tokens), len(tokens) + length), 901]
        trained += [0, *[flag] * length, flag]
    return np.array(tokens, np.uint32), np.array(trained, np.uint8)


def test_what_fits_stays():
    given = sample((3, 0), (3, 1))
    assert fit(given, 10, "fail", ADDED).samples == (given,)


def test_the_longest_prompt_is_cut_in_its_middle_and_the_answer_stays():
    tokens, trained = sample((40, 0), (100, 0), (30, 1))
    fitted = fit((tokens, trained), len(tokens) - 50, "truncate_prompt", ADDED)
    assert fitted.cut == "prompt"
    kept, flags = fitted.samples[0]
    assert len(kept) == len(tokens) - 50
    assert flags.sum() == trained.sum()
    assert kept[:42].tolist() == tokens[:42].tolist()
    removed = sorted(set(tokens.tolist()) - set(kept.tolist()))
    assert removed == list(range(removed[0], removed[0] + 50))
    assert tokens[43] < removed[0] and removed[-1] < tokens[141]
    assert np.isin(kept, ADDED).sum() == 6


def test_several_prompts_are_cut_when_one_is_not_enough():
    tokens, trained = sample((60, 0), (50, 0), (30, 1))
    kept, flags = fit((tokens, trained), len(tokens) - 70, "truncate_prompt", ADDED).samples[0]
    assert len(kept) == len(tokens) - 70
    assert flags.sum() == 31


def test_an_answer_is_cut_only_when_no_prompt_is_left():
    tokens, trained = sample((20, 0), (200, 1))
    fitted = fit((tokens, trained), 100, "truncate_prompt", ADDED)
    assert fitted.cut == "answer"
    assert len(fitted.samples[0][0]) == 100
    assert fitted.samples[0][1].sum() == 100 - 19


def test_truncate_cuts_the_end():
    tokens, trained = sample((20, 0), (20, 1), (9, 0))
    fitted = fit((tokens, trained), len(tokens) - 5, "truncate", ADDED)
    assert fitted.cut == "prompt"
    assert fitted.samples[0][0].tolist() == tokens[:-5].tolist()
    assert fit((tokens, trained), 30, "truncate", ADDED).cut == "answer"


def test_drop_and_fail():
    assert fit(sample((9, 1)), 5, "drop", ADDED).samples == ()
    with pytest.raises(RowFault, match="11 tokens"):
        fit(sample((9, 1)), 5, "fail", ADDED)


def test_split_makes_several_samples_and_leaves_out_what_teaches_nothing():
    tokens, trained = sample((30, 0), (20, 1))
    fitted = fit((tokens, trained), 16, "split", ADDED)
    assert [len(part) for part, _ in fitted.samples] == [16, 6]
    assert np.concatenate([part for part, _ in fitted.samples]).tolist() == tokens[32:].tolist()
    assert np.concatenate([flags for _, flags in fitted.samples]).tolist() == trained[32:].tolist()
