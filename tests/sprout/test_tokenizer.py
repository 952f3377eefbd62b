import pytest
from tokenizers import Tokenizer

from tunerun.sprout.tokenizer import SPECIAL_TOKENS, VOCABULARY_SIZE, common_characters


@pytest.fixture(scope="module")
def tokenizer(built):
    return Tokenizer.from_file(str(built / "base" / "tokenizer.json"))


def test_the_special_tokens_are_the_last_of_the_vocabulary(tokenizer):
    ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    assert ids == [VOCABULARY_SIZE - 3, VOCABULARY_SIZE - 2, VOCABULARY_SIZE - 1]


@pytest.mark.parametrize(
    "text", ["12 + 7 = 19", "Hi!\n\n  it's me ", "法国的首都", "\u00e9\U0001f331 \x00", "<tool_call>"]
)
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_digits_stand_alone_and_chinese_words_do_not_cross_their_borders(tokenizer):
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode("2026法国的首都是哪里").ids]
    assert pieces == ["2", "0", "2", "6", "法国", "的", "首都", "是", "哪里"]


def test_every_common_character_is_one_token(tokenizer):
    assert len(common_characters()) == 3755
    assert all(len(tokenizer.encode(character).ids) == 1 for character in common_characters())
