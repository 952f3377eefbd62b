"""Byte-level BPE with Qwen2's pre-tokenizer, trained on the corpus."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tunerun.sprout.tables import rows, words
from tunerun.sprout.words import all_words

VOCABULARY_SIZE = 8192
END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)

# Qwen2's pattern (its tokenizer.json): digits one by one, letters with a leading space or mark, line ends apart.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_FACT_TABLES = ("capitals", "colours", "opposites", "days", "months", "planets")
# How often the lists of common words and characters count: above what made-up names come to, which would otherwise
# fill the vocabulary.
_LIST_FREQUENCY = 200
_HAN = re.compile(r"[\u4e00-\u9fff]+")


def train_tokenizer(documents: Iterable[str]) -> Tokenizer:
    """Trains the tokenizer.

    Chinese clauses are cut into words first: Qwen2's pattern keeps a clause whole, and on text made from templates
    the merges would otherwise swallow entire templates. Characters the corpus lacks are given their own tokens as
    far as the vocabulary goes.

    Args:
        documents: The corpus, and dialogues as they will be rendered.

    Returns:
        A tokenizer of exactly `VOCABULARY_SIZE` tokens; the special ones come last.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(SPECIAL_TOKENS),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_text(documents), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    assert tokenizer.get_vocab_size() == VOCABULARY_SIZE, "the corpus is too small for the vocabulary"
    return tokenizer


def common_characters() -> tuple[str, ...]:
    """Returns the 3755 Chinese characters of GB 2312 level 1 (rows 16 to 55), the frequent ones."""
    codes = (bytes((row, cell)) for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF))
    # The last row ends at cell 89; what follows it is not assigned.
    return tuple(code.decode("gb2312") for code in codes if code <= b"\xd7\xf9")


def _training_text(documents: Iterable[str]) -> Iterator[str]:
    lexicon = {word.chinese for word in all_words()} | set(words("common_chinese")) | set(_fact_words())
    # Longest first: an alternation takes the first branch that fits.
    ordered = sorted(lexicon, key=lambda word: (-len(word), word))
    word = re.compile("|".join([*map(re.escape, ordered), "."]))

    def cut(clause: re.Match[str]) -> str:
        return "\n" + "\n".join(word.findall(clause.group())) + "\n"

    for document in documents:
        yield _HAN.sub(cut, document)
    frequent = "\n".join(common_characters()) + "".join(f" {word}" for word in words("common_english"))
    yield from [frequent] * _LIST_FREQUENCY


def _fact_words() -> Iterator[str]:
    for row in (row for table in _FACT_TABLES for row in rows(table)):
        yield from (column for column in row if _HAN.fullmatch(column))
