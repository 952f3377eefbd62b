"""The pre-training text: statements, questions with answers as plain text, stories and sentences."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tunerun.sprout.copying import made_up_name
from tunerun.sprout.dialogues import draw_exchange, families_by_language
from tunerun.sprout.family import Family, Language, draw_statement, pick
from tunerun.sprout.stories import draw_text
from tunerun.sprout.words import all_words

# Repeated lists teach to look back and copy, which every answer needs and the other kinds show but seldom.
_KINDS = ("statements", "questions", "text", "repeated lists")
_KIND_SHARES = (0.25, 0.5, 0.1, 0.15)
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
        elif kind == "text":
            yield draw_text(rng, language)
        else:
            yield _repeated_list(rng, language)


def _repeated_list(rng: random.Random, language: Language) -> str:
    words = [word.english if language == "en" else word.chinese for word in rng.sample(all_words(), 6)]
    words += [str(rng.randint(0, 100)) for _ in range(2)] + [made_up_name(rng)]
    chosen = rng.sample(words, rng.randint(3, len(words)))
    return "\n".join([(", " if language == "en" else "、").join(chosen)] * rng.randint(2, 4))


def _with_statements(families: tuple[Family, ...]) -> tuple[Family, ...]:
    return tuple(family for family in families if family.statements)
