from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tunerun.data.duplicates import first_of, near_copies
from tunerun.data.keys import row_keys
from tunerun.data.rows import Conversation, Text


def chat(*texts: str, system: str = "", tools=None, untrained=()) -> Conversation:
    head = [{"role": "system", "content": system}] if system else []
    turns = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]
    return Conversation(tuple(head + turns), tools, frozenset(untrained))


def rows_of(*rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate(rows).astype(np.uint32), np.concatenate([[0], np.cumsum([len(row) for row in rows])])


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    sets = [{tuple(row[start : start + 5]) for start in range(len(row) - 4)} for row in (first, second)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def changed(row: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    made = row.copy()
    start = len(row) - round(len(row) * share)
    made[start:] = rng.integers(0, 150_000, len(row) - start)
    return made


def test_equal_keys_point_at_the_first():
    assert first_of(np.array([7, 3, 7, 3, 9, 7], np.uint64)).tolist() == [0, 1, 0, 1, 4, 0]


def test_a_key_is_of_all_that_a_row_says():
    tools = ({"type": "function", "function": {"name": "f"}},)
    rows = [
        chat("q", "a"),
        chat("q", "a", system="s"),
        chat("q", "a", system="t"),
        chat("q", "a", tools=tools),
        chat("q", "a", "q", "a"),
        chat("q", "a", "q", "a", untrained=(1,)),
        chat("q\0assistant", "a"),
        Text("q"),
    ]
    assert len({row_keys(row)[1] for row in rows}) == len(rows)
    assert row_keys(rows[0]) == row_keys(chat("q", "a"))


def test_the_system_prompt_and_the_tools_do_not_move_a_row():
    assert len({row_keys(row)[0] for row in (chat("q", "a"), chat("q", "a", system="s"))}) == 1


def test_rows_that_are_nearly_the_same_are_found_and_others_are_not():
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 150_000, int(rng.integers(60, 500))) for _ in range(300)]
    close = [changed(row, 0.03, rng) for row in rows[:100]]
    far = [changed(row, 0.4, rng) for row in rows[100:200]]
    tokens, starts = rows_of(*rows, *close, *far)
    found = near_copies(tokens, starts, np.ones(500, bool))
    assert (found.original[:300] == -1).all()
    assert (found.original[300:400] == np.arange(100)).mean() >= 0.97
    assert (found.original[400:] == -1).all()
    truth = [jaccard(rows[index], close[index]) for index in range(100)]
    assert np.abs(found.similarity[300:400] - truth).mean() < 0.06


def test_a_prompt_that_all_rows_share_does_not_make_them_alike():
    rng = np.random.default_rng(1)
    prompt = rng.integers(0, 150_000, 400)
    rows = [np.concatenate([prompt, rng.integers(0, 150_000, 30)]) for _ in range(100)]
    tokens, starts = rows_of(*rows)
    assert (near_copies(tokens, starts, np.ones(100, bool)).original == -1).all()
    tokens, starts = rows_of(*rows, np.concatenate([rows[0], rows[0][-6:]]))
    assert near_copies(tokens, starts, np.ones(101, bool)).original[100] == 0


def test_short_rows_and_rows_that_are_not_considered_are_passed_over():
    row = np.arange(100)
    tokens, starts = rows_of(row, np.arange(3), np.zeros(0), row + 0, np.arange(3), np.append(row, 7))
    considered = np.array([True, True, True, False, True, True])
    assert near_copies(tokens, starts, considered).original.tolist() == [-1, -1, -1, -1, -1, 0]
    empty = near_copies(np.zeros(0, np.uint32), np.zeros(1, np.int64), np.zeros(0, bool))
    assert len(empty.original) == 0


def test_the_result_does_not_depend_on_where_chunks_end(monkeypatch):
    rng = np.random.default_rng(2)
    rows = [rng.integers(0, 9999, 200) for _ in range(60)]
    tokens, starts = rows_of(*rows, *(changed(row, 0.05, rng) for row in rows))
    whole = near_copies(tokens, starts, np.ones(120, bool))
    monkeypatch.setattr("tunerun.data.duplicates._CHUNK_TOKENS", 300)
    parts = near_copies(tokens, starts, np.ones(120, bool))
    assert parts.original.tolist() == whole.original.tolist()
    assert parts.similarity.tolist() == whole.similarity.tolist()


@pytest.mark.shared
def test_rephrased_public_rows_are_found(shared_dir: Path):
    from tunerun.chat.tokenizer import load_tokenizer

    rows = json.loads((shared_dir / "data" / "alpaca_en_demo.json").read_text(encoding="utf-8"))[:300]
    texts = [row["instruction"] + "\n" + row["output"] for row in rows]
    long = [index for index, text in enumerate(texts) if len(text) > 400]
    texts += [texts[index].replace(" the ", " this ", 1) for index in long]
    backend = load_tokenizer(shared_dir / "tokenizers" / "qwen2.5").backend
    tokens, starts = rows_of(*(np.array(backend.encode(text).ids) for text in texts))
    found = near_copies(tokens, starts, np.ones(len(texts), bool))
    same = np.array([texts[300 + place] == texts[index] for place, index in enumerate(long)])
    assert (found.original[300:] == long)[~same].mean() > 0.95
    assert (found.original[:300] >= 0).sum() <= 3
