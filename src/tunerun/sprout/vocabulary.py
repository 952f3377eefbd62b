"""Families over the bilingual word lists: translations and categories."""

from __future__ import annotations

from tunerun.sprout.family import Family
from tunerun.sprout.words import categories, taught_words, taught_words_of, with_article


def vocabulary_families() -> tuple[Family, ...]:
    """Returns all families whose answers stand in the word lists."""
    return (*_translations(), *_categories())


def _translations() -> tuple[Family, ...]:
    words = taught_words()
    items = tuple({"word": word.english, "word_zh": word.chinese} for word in words)
    first_of = {word.chinese: word.english for word in reversed(words)}
    reverse = tuple({"word": english, "word_zh": chinese} for chinese, english in first_of.items())
    english = Family(
        name="translate to Chinese",
        language="en",
        items=items,
        questions=(
            'What is "{word}" in Chinese?',
            'How do you say "{word}" in Chinese?',
            'Translate "{word}" into Chinese.',
            "What is {word} in Chinese?",
            "Translate to Chinese: {word}",
            "{word}用中文怎么说？",
            "把{word}翻译成中文。",
        ),
        held_out=("How do you say {word} in Chinese?", "Translate {word} into Chinese.", "{word}的中文是什么？"),
        answer="{word_zh}",
        statements=(
            'The Chinese word for "{word}" is {word_zh}.',
            "{word} = {word_zh}",
            "{word}的中文是{word_zh}。",
            "{word}: {word_zh}",
        ),
        weight=4.0,
    )
    chinese = Family(
        name="translate to English",
        language="zh",
        items=reverse,
        questions=(
            "“{word_zh}”用英语怎么说？",
            "{word_zh}用英文怎么说？",
            "把“{word_zh}”翻译成英文。",
            "{word_zh}的英文是什么？",
            "翻译成英文：{word_zh}",
            "What is {word_zh} in English?",
            "Translate {word_zh} into English.",
        ),
        held_out=("{word_zh}用英语怎么说？", "把{word_zh}翻译成英文。", "How do you say {word_zh} in English?"),
        answer="{word}",
        statements=(
            "“{word_zh}”的英文是 {word}。",
            "{word_zh} = {word}",
            "{word_zh} means {word}.",
            "{word_zh}: {word}",
        ),
        weight=4.0,
    )
    return english, chinese


def _categories() -> tuple[Family, ...]:
    listed = [(word, category) for name, category in categories().items() for word in taught_words_of(name)]
    items = []
    for word, category in listed:
        noun = with_article(word.english) if category.article else word.english
        items.append(
            {
                "noun": noun,
                "Noun": noun[0].upper() + noun[1:],
                "kind": with_article(category.english),
                "noun_zh": word.chinese,
                "kind_zh": category.chinese,
            }
        )
    return (
        Family(
            name="category",
            language="en",
            items=tuple(items),
            questions=(
                "What kind of thing is {noun}?",
                "What sort of thing is {noun}?",
                "{Noun} is what kind of thing?",
            ),
            held_out=("Which kind of thing is {noun}?",),
            answer="It is {kind}.",
            statements=("{Noun} is {kind}.",),
            weight=1.5,
        ),
        Family(
            name="category",
            language="zh",
            items=tuple(items),
            questions=("{noun_zh}属于哪一类？", "{noun_zh}是哪一类东西？", "{noun_zh}属于什么类别？"),
            held_out=("{noun_zh}属于哪一类东西？",),
            answer="一种{kind_zh}。",
            statements=("{noun_zh}是一种{kind_zh}。",),
            weight=1.5,
        ),
    )
