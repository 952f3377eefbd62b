"""Bilingual word lists, by category."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from tunerun.sprout.tables import rows

_TAUGHT_OF_EACH = 6


@dataclass(frozen=True, slots=True)
class Word:
    """One word in both languages."""

    english: str
    chinese: str


@dataclass(frozen=True, slots=True)
class Category:
    """What the words of one list are, in both languages."""

    english: str
    chinese: str
    article: bool
    """Whether the English words take `a` or `an`."""


@cache
def categories() -> dict[str, Category]:
    """Returns the categories by the name that `words_of` takes."""
    return {name: Category(english, chinese, use == "article") for name, english, chinese, use in rows("categories")}


@cache
def words_of(category: str) -> tuple[Word, ...]:
    """Returns the words of one category, or of `other`, in the order of the table."""
    pairs = next(listed for name, listed in rows("words") if name == category).split()
    return tuple(Word(*pair.split("=")) for pair in pairs)


@cache
def taught_words_of(category: str) -> tuple[Word, ...]:
    """Returns the words of a category that questions are asked about: few, so that each is learned."""
    return words_of(category)[:_TAUGHT_OF_EACH]


@cache
def taught_words() -> tuple[Word, ...]:
    """Returns the words of all categories that questions are asked about, each once by its English spelling."""
    seen: dict[str, Word] = {}
    for word in (word for category in categories() for word in taught_words_of(category)):
        seen.setdefault(word.english, word)
    return tuple(seen.values())


@cache
def all_words() -> tuple[Word, ...]:
    """Returns every word once, by its English spelling; categories come before the other words."""
    seen: dict[str, Word] = {}
    for word in (word for category in (*categories(), "other") for word in words_of(category)):
        seen.setdefault(word.english, word)
    return tuple(seen.values())


def with_article(noun: str) -> str:
    """Puts `a` or `an` before an English noun, by its first letter."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
