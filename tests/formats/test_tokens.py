from __future__ import annotations

import json
import mmap
import shutil

import numpy as np
import pytest

from tunerun.errors import StageError, UserError
from tunerun.formats.tokens import Manifest, TokenStore, TokenWriter

FACTS = {"objective": "sft", "tokenizer_sha256": "t", "template_sha256": None, "max_length": 8, "packed": True}
ROWS = [[([5, 6, 7], [0, 1, 1])], [([1], [1]), ([2, 3], [0, 0])]]


@pytest.fixture
def folder(tmp_path):
    with TokenWriter(tmp_path / "store") as writer:
        for row in ROWS:
            writer.add(*((np.array(tokens, np.uint32), np.array(trained, np.uint8)) for tokens, trained in row))
        writer.finish(**FACTS)
    return tmp_path / "store"


def test_what_was_written_is_read(folder):
    store = TokenStore.open(folder)
    assert store.manifest == Manifest(**FACTS, rows=2, samples=3, tokens=6, trained_tokens=3)
    assert len(store) == 2
    assert store.lengths().tolist() == [3, 3]
    tokens, trained, segments = store.row(1)
    assert (tokens.tolist(), trained.tolist(), segments.tolist()) == ([1, 2, 3], [1, 0, 0], [1, 2, 2])


def test_the_arrays_are_flat_little_endian_files_of_the_documented_types(folder):
    """Golden bytes of schema 2: other versions must go on reading them."""
    assert (folder / "tokens.u32").read_bytes() == bytes.fromhex(
        "05000000 06000000 07000000 01000000 02000000 03000000"
    )
    assert (folder / "trained.u8").read_bytes() == bytes([0, 1, 1, 1, 0, 0])
    assert np.fromfile(folder / "segments.i32", "<i4").tolist() == [0, 0, 0, 1, 2, 2]
    assert np.fromfile(folder / "offsets.i64", "<i8").tolist() == [0, 3, 6]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest == {
        "schema": 2,
        "layout": "rows",
        **FACTS,
        "rows": 2,
        "samples": 3,
        "tokens": 6,
        "trained_tokens": 3,
    }


def test_a_store_that_let_go_of_its_memory_reads_the_same(folder):
    store = TokenStore.open(folder)
    before = [array.tolist() for array in store.row(0)]
    store.let_go()
    assert [array.tolist() for array in store.row(0)] == before


def test_the_arrays_are_mapped_read_only(folder):
    store = TokenStore.open(folder)
    assert isinstance(store.tokens.base, memoryview)
    assert isinstance(store.tokens.base.obj, mmap.mmap)
    with pytest.raises(ValueError, match="read-only"):
        store.tokens[0] = 1


def test_an_empty_store_is_a_store(tmp_path):
    with TokenWriter(tmp_path) as writer:
        writer.finish(**FACTS)
    assert len(TokenStore.open(tmp_path)) == 0


@pytest.mark.parametrize("name", ["tokens.u32", "trained.u8", "segments.i32", "offsets.i64", "manifest.json"])
def test_a_missing_or_short_file_is_refused(folder, tmp_path, name):
    shutil.copytree(folder, tmp_path / "copy")
    if name != "manifest.json":
        path = tmp_path / "copy" / name
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(StageError, match=name):
            TokenStore.open(tmp_path / "copy")
    (folder / name).unlink()
    with pytest.raises(StageError, match=name):
        TokenStore.open(folder)


def test_a_newer_schema_is_refused(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 3'))
    with pytest.raises(UserError, match="schema 3"):
        TokenStore.open(folder)


def test_a_store_of_schema_1_is_read_as_plain_rows(folder):
    old = {"schema": 1, **FACTS, "rows": 2, "samples": 3, "tokens": 6, "trained_tokens": 3}
    (folder / "manifest.json").write_text(json.dumps(old))
    store = TokenStore.open(folder)
    assert (store.manifest.layout, len(store), store.labels) == ("rows", 2, None)


def test_labels_are_kept_for_each_row(tmp_path):
    with TokenWriter(tmp_path, labelled=True) as writer:
        for (sample, *_), label in zip(ROWS, (True, False), strict=True):
            writer.add((np.array(sample[0]), np.array(sample[1])), label=label)
        writer.finish(**FACTS)
    store = TokenStore.open(tmp_path)
    assert store.manifest.layout == "labelled"
    assert (tmp_path / "labels.u8").read_bytes() == bytes([1, 0])
    assert store.labels.tolist() == [1, 0]
    (tmp_path / "labels.u8").write_bytes(b"")
    with pytest.raises(StageError, match=r"labels\.u8"):
        TokenStore.open(tmp_path)


def test_a_store_is_incomplete_until_it_is_finished(tmp_path):
    with TokenWriter(tmp_path) as writer:
        writer.add((np.array([1]), np.array([1])))
    with pytest.raises(StageError, match=r"manifest\.json"):
        TokenStore.open(tmp_path)
