from __future__ import annotations

import numpy as np
import pytest

from tunerun.errors import StageError
from tunerun.formats.pairs import PairStore, finish_pairs, open_store
from tunerun.formats.tokens import TokenStore, TokenWriter

FACTS = {"objective": "dpo", "tokenizer_sha256": "t", "template_sha256": "c", "max_length": 8, "packed": False}
CHOSEN = [([5, 6, 7], [0, 1, 1]), ([1, 2], [0, 1])]
REJECTED = [([5, 9], [0, 1]), ([1, 3, 4], [0, 1, 1])]


@pytest.fixture
def folder(tmp_path):
    manifests = []
    for name, rows in (("chosen", CHOSEN), ("rejected", REJECTED)):
        with TokenWriter(tmp_path / name) as writer:
            for tokens, trained in rows:
                writer.add((np.array(tokens), np.array(trained)))
            manifests.append(writer.finish(**FACTS))
    finish_pairs(tmp_path, *manifests)
    return tmp_path


def test_both_sides_of_a_pair_are_read_by_one_number(folder):
    store = PairStore.open(folder)
    assert len(store) == 2
    assert store.chosen.row(1)[0].tolist() == [1, 2]
    assert store.rejected.row(1)[0].tolist() == [1, 3, 4]
    assert store.lengths().tolist() == [3, 3]
    manifest = store.manifest
    assert (manifest.layout, manifest.rows, manifest.samples) == ("pairs", 2, 2)
    assert (manifest.tokens, manifest.trained_tokens) == (10, 6)


def test_a_store_is_opened_as_what_it_is(folder):
    assert isinstance(open_store(folder), PairStore)
    assert isinstance(open_store(folder / "chosen"), TokenStore)
    with pytest.raises(StageError, match="holds pairs of rows for objective=dpo"):
        TokenStore.open(folder)
    with pytest.raises(StageError, match="not pairs"):
        PairStore.open(folder / "chosen")


def test_a_missing_side_is_refused(folder):
    (folder / "rejected" / "manifest.json").unlink()
    with pytest.raises(StageError, match="rejected: no complete token store"):
        PairStore.open(folder)


def test_sides_of_different_length_are_refused(folder):
    with TokenWriter(folder / "rejected") as writer:
        writer.add((np.array([1]), np.array([1])))
        writer.finish(**FACTS)
    with pytest.raises(StageError, match="differ in rows"):
        PairStore.open(folder)
