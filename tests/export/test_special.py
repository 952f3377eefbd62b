"""Special tokens and templates as servers see them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.export.conftest import open_model
from tests.export.models import build_model, build_tokenizer, edit_json
from tunerun.chat.template import load_template
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.errors import UserError
from tunerun.export.special import SpecialTokens, read_special


def special_of(folder: Path) -> SpecialTokens:
    tokenizer = load_tokenizer(folder)
    return read_special(folder, tokenizer, load_template(folder, tokenizer.named))


def test_the_end_of_a_turn_is_found_when_it_is_not_the_end_of_text(tmp_path: Path) -> None:
    build_tokenizer(tmp_path, eos="<|endoftext|>")
    special = special_of(tmp_path)
    assert special.stops == ("<|im_end|>", "<|endoftext|>")
    assert special.end_of_turn == load_tokenizer(tmp_path).backend.token_to_id("<|im_end|>")


def test_end_tokens_of_the_generation_config_stop_too(tmp_path: Path) -> None:
    build_tokenizer(tmp_path)
    other = load_tokenizer(tmp_path).backend.token_to_id("<|fim|>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [other]}))
    assert special_of(tmp_path).stops == ("<|im_end|>", "<|fim|>")


def test_a_model_without_a_template_stops_at_its_end_token(tmp_path: Path) -> None:
    build_tokenizer(tmp_path, template=None)
    assert special_of(tmp_path) == SpecialTokens(
        end_of_turn=None, adds_bos=False, adds_eos=False, starts_chats=False, stops=("<|im_end|>",)
    )


def test_a_tokenizer_that_puts_a_token_before_every_text_is_noticed(tmp_path: Path) -> None:
    build_tokenizer(tmp_path)
    start = load_tokenizer(tmp_path).backend.token_to_id("<|im_start|>")
    frame = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    special_tokens = {"<|im_start|>": {"id": "<|im_start|>", "ids": [start], "tokens": ["<|im_start|>"]}}
    processor = {
        "type": "TemplateProcessing",
        "single": [frame, text],
        "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": special_tokens,
    }
    edit_json(tmp_path / "tokenizer.json", post_processor=processor)
    edit_json(tmp_path / "tokenizer_config.json", bos_token="<|im_start|>")
    assert special_of(tmp_path).adds_bos
    assert not special_of(tmp_path).adds_eos


def test_a_template_that_refuses_a_plain_question_is_named(tmp_path: Path) -> None:
    build_tokenizer(tmp_path, template="{{ raise_exception('no') }}")
    with pytest.raises(UserError, match="refuses"):
        special_of(tmp_path)


def test_the_embedded_template_renders_like_the_one_trained_with(tmp_path: Path) -> None:
    marked = (
        "{%- for m in messages %}\n{{ '<|im_start|>' + m.role }}\n{%- if m.role == 'assistant' %}\n"
        "  {%- generation %}\n{{ m.content + '<|im_end|>' }}\n  {%- endgeneration %}\n"
        "{%- else %}{{ m.content }}{% endif %}\n{%- endfor %}"
    )
    build_model(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(marked)
    embedded = open_model(tmp_path).template
    assert embedded is not None
    assert "generation" not in embedded
    (tmp_path / "plain.jinja").write_text(embedded)
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    trained = load_template(tmp_path, {})
    served = load_template(tmp_path, {}, str(tmp_path / "plain.jinja"))
    assert trained is not None
    assert served is not None
    assert trained.render(talk) == served.render(talk)
