"""The pre-training text: statements, questions with answers as plain text, stories and sentences."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tunerun.sprout.dialogues import draw_exchange, families_by_language
from tunerun.sprout.family import Family, Language, draw_statement, pick
from tunerun.sprout.stories import draw_text

_KINDS = ("statements", "questions", "text")
_KIND_SHARES = (0.4, 0.4, 0.2)
_QUESTION_FORMS: dict[Language, tuple[str, ...]] = {
    "en": ("Question: {}\nAnswer: {}", "Q: {}\nA: {}", "{}\n{}"),
    "zh": ("问题：{}\n回答：{}", "问：{}\n答：{}", "{}\n{}"),
}


def draw_documents(count: int, seed: int) -> Iterator[str]:
    """Draws short documents, each of one language and one kind.

    Args:
        count: Of documents.
        seed: Of all choices.
    """
    rng = random.Random(seed)
    by_language = families_by_language()
    stated = {language: _with_statements(families) for language, families in by_language.items()}
    for _ in range(count):
        language: Language = rng.choice(("en", "zh"))
        kind = rng.choices(_KINDS, _KIND_SHARES)[0]
        if kind == "statements":
            sentences = [draw_statement(pick(stated[language], rng), rng) for _ in range(rng.randint(4, 10))]
            yield rng.choice(("\n", " ")).join(sentences)
        elif kind == "questions":
            form = rng.choice(_QUESTION_FORMS[language])
            drawn = [draw_exchange(by_language[language], rng, language) for _ in range(rng.randint(2, 6))]
            yield "\n".join(form.format(exchange.question, exchange.answer) for exchange in drawn)
        else:
            yield draw_text(rng, language)


def _with_statements(families: tuple[Family, ...]) -> tuple[Family, ...]:
    return tuple(family for family in families if family.statements)
