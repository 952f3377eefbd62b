from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from tunerun.chat.token_bytes import token_bytes
from tunerun.chat.tokenizer import load_tokenizer


@given(st.text())
def test_the_bytes_of_the_tokens_are_those_of_the_normalised_text(chat_folder, text):
    backend = load_tokenizer(chat_folder).backend
    table = token_bytes(backend)
    ids = backend.encode(text + "<|im_end|>").ids
    joined = b"".join([table[number] for number in ids])
    assert joined.decode() == backend.normalizer.normalize_str(text) + "<|im_end|>"
    assert table.sizes[ids].sum() == len(joined)


@pytest.mark.shared
def test_every_token_of_qwen_is_what_it_decodes_to(shared_dir):
    backend = load_tokenizer(shared_dir / "tokenizers" / "qwen2.5").backend
    table = token_bytes(backend)
    for number in range(backend.get_vocab_size()):
        assert table[number].decode(errors="replace") == backend.decode([number], skip_special_tokens=False)


def test_numbers_that_the_vocabulary_leaves_out_do_no_harm():
    backend = Tokenizer(models.BPE({"a": 0, "b": 900}, []))
    backend.decoder = decoders.ByteLevel()
    table = token_bytes(backend)
    assert b"".join([table[number] for number in backend.encode("abba").ids]) == b"abba"
    assert table.sizes[[0, 900]].tolist() == [1, 1]


def test_other_tokenizers_have_no_table():
    assert token_bytes(Tokenizer(models.WordLevel({"a": 0}, "a"))) is None
