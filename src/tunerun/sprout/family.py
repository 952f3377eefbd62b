"""A family of questions: the items asked about, several phrasings, and the one answer that is right."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")
Item = Mapping[str, str]

_LEAD_INS: dict[Language, tuple[str, ...]] = {
    "en": ("Please tell me: ", "I have a question. ", "Tell me, ", "Hi! ", "Can you help me? ", "Quick question: "),
    "zh": ("请问，", "请告诉我：", "我想问一下，", "你好！", "帮我看看，", "问个问题："),
}
_LEAD_IN_SHARE = 0.15
_BARE_SHARE = 0.15
_LOWER_SHARE = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """Questions of one kind in one language; all templates are `str.format` templates over an item's keys."""

    name: str
    """Families of the two languages share a name."""
    language: Language
    items: tuple[Item, ...]
    questions: tuple[str, ...]
    """The phrasings that are taught."""
    held_out: tuple[str, ...]
    """The phrasings that are only asked in the evaluation."""
    answer: str
    statements: tuple[str, ...] = ()
    """The same knowledge as running text, for the corpus."""
    held_out_items: tuple[Item, ...] = ()
    """What the evaluation asks about; empty where every item must be taught (a capital cannot be guessed)."""
    weight: float = 1.0
    """How often it is drawn, relative to the other families."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question with its answer."""

    family: str
    language: Language
    question: str
    answer: str


def draw(family: Family, rng: random.Random) -> Exchange:
    """Draws a taught item in a taught phrasing, sometimes with a lead-in or without its final mark."""
    item = rng.choice(family.items)
    question = _vary(rng.choice(family.questions).format_map(item), family.language, rng)
    return Exchange(family.name, family.language, question, family.answer.format_map(item))


def draw_held_out(family: Family, rng: random.Random) -> Exchange:
    """Draws a question for the evaluation: a held-out phrasing, of a held-out item where there are any."""
    item = rng.choice(family.held_out_items or family.items)
    question = rng.choice(family.held_out).format_map(item)
    return Exchange(family.name, family.language, question, family.answer.format_map(item))


def draw_statement(family: Family, rng: random.Random) -> str:
    """Draws one sentence of the family's knowledge; the family has statements."""
    return rng.choice(family.statements).format_map(rng.choice(family.items))


def pick(families: Sequence[Family], rng: random.Random) -> Family:
    """Draws a family by weight."""
    return rng.choices(families, [family.weight for family in families])[0]


def _vary(question: str, language: Language, rng: random.Random) -> str:
    if rng.random() < _LOWER_SHARE:
        question = question[0].lower() + question[1:]
    if rng.random() < _BARE_SHARE:
        question = question.rstrip("?.？。!！")
    if rng.random() < _LEAD_IN_SHARE:
        question = rng.choice(_LEAD_INS[language]) + question
    return question
