from __future__ import annotations

import json
import shutil

import pytest

from tunerun.chat.tokenizer import load_tokenizer
from tunerun.errors import UserError


def test_named_tokens_are_read_as_text_or_object_and_null_is_none(chat_folder):
    tokenizer = load_tokenizer(chat_folder)
    assert tokenizer.named == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    assert tokenizer.token_id("eos_token") == tokenizer.backend.token_to_id("<|im_end|>")
    assert tokenizer.token_id("bos_token") is None


def test_the_older_map_of_special_tokens_counts_only_without_added_tokens_decoder(chat_folder, tmp_path):
    shutil.copytree(chat_folder, tmp_path / "model")
    config = tmp_path / "model" / "tokenizer_config.json"
    (tmp_path / "model" / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|endoftext|>"}}')
    assert load_tokenizer(tmp_path / "model").named["eos_token"] == "<|endoftext|>"
    config.write_text(json.dumps({**json.loads(config.read_text()), "added_tokens_decoder": {}}))
    assert load_tokenizer(tmp_path / "model").named["eos_token"] == "<|im_end|>"


def test_truncation_saved_in_the_file_is_undone(chat_folder, tmp_path):
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(chat_folder / "tokenizer.json"))
    backend.enable_truncation(2)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert len(load_tokenizer(tmp_path).backend.encode("one two three four").ids) > 8


def test_the_longest_special_token_wins(chat_folder, tmp_path):
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(chat_folder / "tokenizer.json"))
    backend.add_special_tokens(["<|im_end|>x"])
    backend.save(str(tmp_path / "tokenizer.json"))
    pattern = load_tokenizer(tmp_path).special
    assert pattern is not None
    assert pattern.search("a<|im_end|>x")[0] == "<|im_end|>x"


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("tokenizer.json", None, "is missing"),
        ("tokenizer.json", "{", "is not a tokenizer"),
        ("tokenizer_config.json", "{", "is not valid JSON"),
        ("tokenizer_config.json", "[]", "is not a JSON object"),
    ],
)
def test_damaged_files_are_named(chat_folder, tmp_path, name, text, what):
    shutil.copytree(chat_folder, tmp_path / "model")
    path = tmp_path / "model" / name
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=what) as caught:
        load_tokenizer(tmp_path / "model")
    assert caught.value.problems[0].where == str(path)
