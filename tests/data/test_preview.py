from __future__ import annotations

import numpy as np

from tests.data.test_stage import Run, pairs, write
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.data.preview import preview
from tunerun.formats.tokens import TokenStore, TokenWriter

FACTS = {"objective": "sft", "tokenizer_sha256": "", "template_sha256": None, "max_length": 9999, "packed": False}


def store_of(folder, backend, *stretches: tuple[str, bool]) -> TokenStore:
    ids = [backend.encode(text).ids for text, _ in stretches]
    trained = [np.full(len(part), flag, np.uint8) for part, (_, flag) in zip(ids, stretches, strict=True)]
    with TokenWriter(folder) as writer:
        writer.add((np.concatenate(ids).astype(np.uint32), np.concatenate(trained)))
        writer.finish(**FACTS)
    return TokenStore.open(folder)


def test_a_long_text_is_shortened_in_its_middle(tmp_path, chat_folder):
    tokenizer = load_tokenizer(chat_folder)
    long = "begin " + "x" * 5000 + " end"
    text = preview(store_of(tmp_path, tokenizer.backend, ("q", False), (long, True)), tokenizer)
    assert ">>>begin xxx" in text and "xxx end<<<" in text
    assert "[... 4,410 characters ...]" in text
    assert len(text) < 1000


def test_many_turns_are_shortened_too(tmp_path, chat_folder):
    tokenizer = load_tokenizer(chat_folder)
    turns = [(f"turn {number}", number % 2 == 1) for number in range(40)]
    text = preview(store_of(tmp_path, tokenizer.backend, *turns), tokenizer)
    assert "[... 28 parts ...]" in text
    assert "turn 0>>>turn 1<<<" in text and ">>>turn 39<<<" in text
    assert text.count(">>>") == text.count("<<<")


def test_what_a_terminal_would_obey_is_not_passed_on(tmp_path, chat_folder):
    tokenizer = load_tokenizer(chat_folder)
    store = store_of(tmp_path, tokenizer.backend, ("q", False), ("red \x1b[31m and bell \x07", True))
    assert "\x1b" not in preview(store, tokenizer)
    assert preview(store, tokenizer, colour=True).count("\x1b") == 2


def test_three_samples_are_shown_also_of_a_packed_row(tmp_path, chat_folder):
    run = Run(tmp_path, chat_folder)
    run(write(tmp_path / "a.jsonl", pairs(9)), packing=True, max_length=512)
    text = (tmp_path / "data" / "preview.txt").read_text(encoding="utf-8")
    assert [line.split(":")[0] for line in text.splitlines() if line.startswith("---")] == [
        "--- sample 1",
        "--- sample 2",
        "--- sample 3",
    ]
    assert "<|im_start|>assistant" in text
