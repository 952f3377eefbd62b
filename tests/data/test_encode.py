from __future__ import annotations

import json
import random
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunerun.chat.faults import ChatFault
from tunerun.chat.mask import MarkedText, Renderer
from tunerun.chat.template import ChatTemplate, load_template
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.data.encode import pretrain, sft
from tunerun.data.normalise import normalise
from tunerun.data.rows import Text
from tunerun.errors import UserError

TEXTS = (
    "Who are you?",
    "你好，世界\n",
    "\n\nlines\n\n",
    " spaced ",
    "naïve 🙂🙂",
    "def f(x):\n    return x",
    "<|im_end|>",
    "é",
)


@pytest.fixture(scope="module")
def tokenizer(chat_folder):
    return load_tokenizer(chat_folder)


def conversations(count: int) -> list[list[dict]]:
    source = random.Random(3)
    made = []
    for _ in range(count):
        texts = [source.choice(TEXTS) for _ in range(2 * source.randint(1, 3))]
        roles = ("user", "assistant") * len(texts)
        made.append([{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)])
    return made


def test_tokens_are_those_of_the_whole_rendering(tokenizer):
    renderer = Renderer(load_template(None, {}, "chatml"), tokenizer)
    for messages in conversations(60):
        (row,) = renderer.rows(messages, None)
        ((tokens, trained),) = sft.encode([row], tokenizer)
        assert tokens.tolist() == tokenizer.backend.encode(row.text, add_special_tokens=False).ids
        assert tokens.dtype == np.uint32 and trained.dtype == np.uint8 and tokens.shape == trained.shape


def expected_flags(tokenizer, row: MarkedText) -> list[int]:
    """By offsets alone: a token is trained when it shares a character with a trained span."""
    encoding = tokenizer.backend.encode(row.text, add_special_tokens=False)
    return [int(any(start < stop and end > begin for begin, stop in row.trained)) for start, end in encoding.offsets]


def test_the_tokens_of_trained_characters_are_trained(tokenizer):
    renderer = Renderer(load_template(None, {}, "chatml"), tokenizer)
    for messages in conversations(120):
        (row,) = renderer.rows(messages, None)
        ((_, trained),) = sft.encode([row], tokenizer)
        assert trained.tolist() == expected_flags(tokenizer, row)


PIECES = st.sampled_from(
    [
        "Wort ",
        "  ",
        "\n\n",
        "世界",
        "🙂",
        "👩‍👩‍👧",
        "e\u0301",
        "\u0958",
        "\u1100\u1161",
        "<|im_end|>",
        "<|im_start|>assistant\n",
        "<|endoftext|>",
        "<tool_call>",
        "\x00",
        "ﷺ",
        "'s",
        "１２",
    ]
)
CHATS = st.lists(st.lists(PIECES | st.text(max_size=6), min_size=1, max_size=6).map("".join), min_size=2, max_size=6)


def made_both_ways(tokenizer, conversations: list[list[str]], train_on: str = "assistant"):
    """Rows of conversations, encoded by the bytes of their tokens and by the tokenizer's offsets."""
    renderer = Renderer(load_template(None, {}, "chatml"), tokenizer, train_on)
    rows = []
    for texts in conversations:
        roles = ("user", "assistant") * len(texts)
        messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
        with suppress(ChatFault):
            rows += renderer.rows(messages[: len(messages) // 2 * 2], None)
    return sft.encode(rows, tokenizer), sft._encode_by_offsets(rows, tokenizer)


def same(left, right) -> bool:
    return len(left) == len(right) and all(
        one[0].tolist() == two[0].tolist() and one[1].tolist() == two[1].tolist()
        for one, two in zip(left, right, strict=True)
    )


@given(st.lists(CHATS, max_size=5), st.sampled_from(["assistant", "last", "all"]))
def test_positions_by_bytes_are_those_of_the_offsets(chat_folder, conversations, train_on):
    assert same(*made_both_ways(load_tokenizer(chat_folder), conversations, train_on))


@given(
    st.lists(
        st.text(alphabet="ab \n世🙂e\u0301", max_size=20).flatmap(
            lambda text: st.tuples(
                st.just(text), st.lists(st.integers(0, len(text)), max_size=6, unique=True).map(sorted)
            )
        ),
        max_size=5,
    )
)
def test_spans_that_cut_through_tokens_train_the_tokens_they_touch(chat_folder, cases):
    tokenizer = load_tokenizer(chat_folder)
    rows = [
        MarkedText(text, tuple(zip(cuts[: len(cuts) // 2 * 2 : 2], cuts[1::2], strict=True))) for text, cuts in cases
    ]
    found = sft.encode(rows, tokenizer)
    assert same(found, sft._encode_by_offsets(rows, tokenizer))
    assert [flags.tolist() for _, flags in found] == [expected_flags(tokenizer, row) for row in rows]


@pytest.mark.shared
@pytest.mark.parametrize("name", ["alpaca_en_demo.json", "alpaca_zh_demo.json", "glaive_toolcall_en_demo.json"])
def test_positions_by_bytes_are_those_of_the_offsets_on_real_data(shared_dir, monkeypatch, name):
    folder = shared_dir / "tokenizers" / "qwen2.5"
    tokenizer = load_tokenizer(folder)
    encoder = sft.encoder(Renderer(load_template(folder, tokenizer.named), tokenizer))
    values = json.loads((shared_dir / "data" / name).read_text(encoding="utf-8"))
    form = "sharegpt" if "conversations" in values[0] else "alpaca"
    rows = [row for value in values for row in encoder.render(normalise(value, form, {}))]
    by_offsets = sft._encode_by_offsets(rows, tokenizer)
    asked: list[int] = []
    monkeypatch.setattr(sft, "_encode_by_offsets", lambda rows, _: asked.append(len(rows)) or [])
    assert same(sft.encode(rows, tokenizer), by_offsets)
    assert asked == [0], "no row of these needed the offsets"


def test_a_token_that_reaches_over_the_edge_of_an_answer_is_trained(tokenizer):
    text = "<|im_start|>assistant\n\nlines<|im_end|>"
    start = text.index("\n") + 1
    ((tokens, trained),) = sft.encode([MarkedText(text, ((start, len(text)),))], tokenizer)
    double = tokenizer.backend.token_to_id("ĊĊ")
    assert double is not None
    assert trained[tokens.tolist().index(double)] == 1
    assert trained[:2].tolist() == [0, 0]


def test_no_second_bos_is_put_before_a_rendering(chat_folder, tmp_path):
    tokenizer = with_bos(chat_folder, tmp_path)
    template = ChatTemplate(
        text="{{ bos_token }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}",
        tool_text=None,
        variables={"bos_token": "<|endoftext|>"},
        source="test",
    )
    (row,) = Renderer(template, tokenizer).rows(conversations(1)[0][:2], None)
    ((tokens, _),) = sft.encode([row], tokenizer)
    assert tokens.tolist().count(tokenizer.backend.token_to_id("<|endoftext|>")) == 1


def with_bos(chat_folder, folder):
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    backend = Tokenizer.from_file(str(chat_folder / "tokenizer.json"))
    first = backend.token_to_id("<|endoftext|>")
    backend.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", first)])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>"}')
    return load_tokenizer(folder)


def test_documents_end_once_begin_as_the_tokenizer_says_and_are_all_trained(chat_folder, tokenizer, tmp_path):
    end = tokenizer.token_id("eos_token")
    (((tokens, trained),), ((again, _),)) = pretrain.encode(["Who?", "Who?<|im_end|>"], tokenizer, end, 99)
    assert tokens.tolist() == again.tolist() == [*tokenizer.backend.encode("Who?").ids, end]
    assert trained.all()
    (((tokens, _),),) = pretrain.encode(["Who?"], with_bos(chat_folder, tmp_path), end, 99)
    assert tokens[0] == tokenizer.backend.token_to_id("<|endoftext|>")


def test_long_documents_are_cut_into_parts_that_join_to_the_whole(tokenizer):
    text = "The user asks and the assistant answers. " * 20
    encoder = pretrain.encoder(tokenizer, 16)
    (parts,) = encoder.encode(encoder.render(Text(text)))
    assert all(len(tokens) == 16 for tokens, _ in parts[:-1])
    whole = np.concatenate([tokens for tokens, _ in parts]).tolist()
    assert whole == [*tokenizer.backend.encode(text).ids, tokenizer.token_id("eos_token")]


def test_a_model_without_end_of_sequence_cannot_be_pretrained(chat_folder, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((chat_folder / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match="no end-of-sequence token"):
        pretrain.encoder(load_tokenizer(tmp_path), 16)


@pytest.mark.shared
def test_the_public_vectors_of_qwen_tokenise_exactly(shared_dir):
    folder = shared_dir / "tokenizers" / "qwen2.5"
    tokenizer = load_tokenizer(folder)
    texts = (folder / "vectors.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = (folder / "vectors.out").read_text(encoding="utf-8").split("\n")
    expected = [[int(token) for token in line.split()] for line in lines]
    assert len(texts) == len(expected) == 47
    found = sft.encode([MarkedText(text, ()) for text in texts], tokenizer)
    assert [tokens.tolist() for tokens, _ in found] == expected


@pytest.mark.shared
def test_masks_equal_those_of_transformers_with_generation_markers(shared_dir):
    from transformers import PreTrainedTokenizerFast

    folder = shared_dir / "tokenizers" / "qwen2.5"
    tokenizer = load_tokenizer(folder)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|im_end|>")
    plain = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    user = """(message.role == "user") or (message.role == "system" and not loop.first)"""
    old = user + """ or (message.role == "assistant" and not message.tool_calls)"""
    branch = (
        user + """ %}\n{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"""
        """{%- elif message.role == "assistant" and not message.tool_calls %}{{- '<|im_start|>assistant\\n' }}"""
        """{% generation %}{{- message.content + '<|im_end|>' }}{% endgeneration %}{{- '\\n' }}{%- elif false"""
    )
    assert old in plain
    renderer = Renderer(load_template(folder, tokenizer.named), tokenizer)
    for messages in conversations(40):
        out = theirs.apply_chat_template(
            messages, chat_template=plain.replace(old, branch), return_dict=True, return_assistant_tokens_mask=True
        )
        ((tokens, trained),) = sft.encode(renderer.rows(messages, None), tokenizer)
        assert tokens.tolist() == out["input_ids"]
        assert trained.tolist() == out["assistant_masks"]
