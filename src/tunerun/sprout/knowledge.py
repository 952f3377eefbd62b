"""Families over the fixed tables: facts, translations, opposites, categories, spelling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tunerun.sprout import facts
from tunerun.sprout.family import Family, Item
from tunerun.sprout.words import CATEGORIES, all_words, with_article, words_of


def knowledge_families() -> tuple[Family, ...]:
    """Returns all families whose answers stand in a table."""
    return (
        *_capitals(),
        *_colours(),
        *_animals(),
        *_opposites(),
        *_calendar(),
        *_months(),
        *_planets(),
        *_jobs(),
        *_uses(),
        *_single_facts(),
        *_translations(),
        *_spelling(),
        *_categories(),
    )


def _items(table: Iterable[Sequence[str]], *columns: str) -> tuple[Item, ...]:
    return tuple(dict(zip(columns, row, strict=True)) for row in table)


def _capitals() -> tuple[Family, ...]:
    items = _items(facts.CAPITALS, "country", "capital", "country_zh", "capital_zh")
    english = Family(
        name="capital",
        language="en",
        items=items,
        questions=(
            "What is the capital of {country}?",
            "What's the capital city of {country}?",
            "Which city is the capital of {country}?",
            "Name the capital of {country}.",
            "{country}: what is its capital?",
            "Do you know the capital of {country}?",
        ),
        held_out=("Tell me the capital of {country}.", "What city is the capital of {country}?"),
        answer="The capital of {country} is {capital}.",
        statements=(
            "The capital of {country} is {capital}.",
            "{capital} is the capital of {country}.",
            "{capital} is a city in {country}.",
        ),
        weight=3.0,
    )
    chinese = Family(
        name="capital",
        language="zh",
        items=items,
        questions=(
            "{country_zh}的首都是哪里？",
            "{country_zh}的首都是什么？",
            "{country_zh}的首都在哪里？",
            "哪个城市是{country_zh}的首都？",
            "说出{country_zh}的首都。",
            "你知道{country_zh}的首都吗？",
        ),
        held_out=("{country_zh}的首都是哪个城市？", "告诉我{country_zh}的首都是哪里。"),
        answer="{country_zh}的首都是{capital_zh}。",
        statements=(
            "{country_zh}的首都是{capital_zh}。",
            "{capital_zh}是{country_zh}的首都。",
            "{capital_zh}在{country_zh}。",
        ),
        weight=3.0,
    )
    return english, chinese


def _colours() -> tuple[Family, ...]:
    items = _items(facts.COLOURS, "thing", "colour", "thing_zh", "colour_zh")
    capitalised = tuple({**item, "Thing": item["thing"][0].upper() + item["thing"][1:]} for item in items)
    english = Family(
        name="colour",
        language="en",
        items=capitalised,
        questions=(
            "What colour is {thing}?",
            "What is the colour of {thing}?",
            "Which colour does {thing} have?",
            "{Thing}: which colour is it?",
        ),
        held_out=("Which colour is {thing}?",),
        answer="{Thing} is {colour}.",
        statements=("{Thing} is {colour}.", "The colour of {thing} is {colour}."),
    )
    chinese = Family(
        name="colour",
        language="zh",
        items=items,
        questions=(
            "{thing_zh}是什么颜色的？",
            "{thing_zh}的颜色是什么？",
            "{thing_zh}是哪种颜色？",
            "说出{thing_zh}的颜色。",
        ),
        held_out=("{thing_zh}是什么颜色？",),
        answer="{thing_zh}是{colour_zh}的。",
        statements=("{thing_zh}是{colour_zh}的。", "{thing_zh}的颜色是{colour_zh}。"),
    )
    return english, chinese


def _animals() -> tuple[Family, ...]:
    sounds = _items(facts.SOUNDS, "animal", "sound", "animal_zh", "sound_zh")
    legs = tuple(
        {**item, "an_animal": with_article(item["animal"])}
        for item in _items(facts.LEGS, "animal", "legs", "animal_zh", "legs_zh")
    )
    return (
        Family(
            name="sound",
            language="en",
            items=sounds,
            questions=("What does the {animal} say?", "What sound does the {animal} make?", "How does the {animal} sound?"),
            held_out=("Which sound does the {animal} make?",),
            answer="The {animal} says {sound}.",
            statements=("The {animal} says {sound}.", "{sound}, says the {animal}."),
            weight=0.5,
        ),
        Family(
            name="sound",
            language="zh",
            items=sounds,
            questions=("{animal_zh}怎么叫？", "{animal_zh}的叫声是什么？", "{animal_zh}叫起来是什么声音？"),
            held_out=("{animal_zh}是怎么叫的？",),
            answer="{animal_zh}的叫声是{sound_zh}。",
            statements=("{animal_zh}的叫声是{sound_zh}。", "{animal_zh}{sound_zh}叫。"),
            weight=0.5,
        ),
        Family(
            name="legs",
            language="en",
            items=legs,
            questions=("How many legs does {an_animal} have?", "How many legs has {an_animal}?", "Count the legs of {an_animal}."),
            held_out=("How many legs are there on {an_animal}?",),
            answer="The {animal} has {legs} legs.",
            statements=("The {animal} has {legs} legs.",),
            weight=0.5,
        ),
        Family(
            name="legs",
            language="zh",
            items=legs,
            questions=("{animal_zh}有几条腿？", "{animal_zh}有多少条腿？", "一只{animal_zh}有几条腿？"),
            held_out=("一只{animal_zh}有多少条腿？",),
            answer="{animal_zh}有{legs_zh}条腿。",
            statements=("{animal_zh}有{legs_zh}条腿。",),
            weight=0.5,
        ),
    )


def _opposites() -> tuple[Family, ...]:
    table = facts.OPPOSITES
    both = (*table, *((second, first, fourth, third) for first, second, third, fourth in table))
    # A word may have two opposites in the table (dark, white): the first stands, so that one answer is right.
    english = {row[0]: {"word": row[0], "opposite": row[1]} for row in reversed(both)}
    chinese = {row[2]: {"word": row[2], "opposite": row[3]} for row in reversed(both)}
    return (
        Family(
            name="opposite",
            language="en",
            items=tuple(english.values()),
            questions=(
                "What is the opposite of {word}?",
                "What's the opposite of {word}?",
                "Give me the opposite of {word}.",
                "Which word is the opposite of {word}?",
                "Opposite of {word}?",
            ),
            held_out=("Name the opposite of {word}.", "Tell me the opposite of {word}."),
            answer="The opposite of {word} is {opposite}.",
            statements=("The opposite of {word} is {opposite}.", "{word} and {opposite} are opposites."),
            weight=1.5,
        ),
        Family(
            name="opposite",
            language="zh",
            items=tuple(chinese.values()),
            questions=(
                "{word}的反义词是什么？",
                "{word}的反义词是哪个？",
                "说出{word}的反义词。",
                "哪个词和{word}相反？",
            ),
            held_out=("和{word}相反的词是什么？", "告诉我{word}的反义词。"),
            answer="{word}的反义词是{opposite}。",
            statements=("{word}的反义词是{opposite}。", "{word}和{opposite}是一对反义词。"),
            weight=1.5,
        ),
    )


def _calendar() -> tuple[Family, ...]:
    families = []
    for name, english, chinese in (
        ("day", [row[0] for row in facts.DAYS], [row[1] for row in facts.DAYS]),
        ("month", [row[0] for row in facts.MONTHS], [row[2] for row in facts.MONTHS]),
    ):
        items = [_neighbours(names) for names in (english, chinese)]
        families += [
            Family(
                name=name,
                language="en",
                items=items[0],
                questions=(
                    f"Which {name} comes after {{this}}?",
                    f"What {name} follows {{this}}?",
                    f"What is the next {name} after {{this}}?",
                ),
                held_out=(f"What {name} comes after {{this}}?",),
                answer="{next} comes after {this}.",
                statements=("{next} comes after {this}.", "After {this} comes {next}.", "{this}, {next}"),
            ),
            Family(
                name=name,
                language="zh",
                items=items[1],
                questions=("{this}之后是什么？", "{this}后面是哪个？", "{this}过后是什么？"),
                held_out=("{this}后面是什么？",),
                answer="{this}之后是{next}。",
                statements=("{this}之后是{next}。", "{this}过后就是{next}。", "{this}、{next}"),
            ),
        ]
    return tuple(families)


def _neighbours(names: Sequence[str]) -> tuple[Item, ...]:
    following = (*names[1:], names[0])
    return _items(zip(names, following, strict=True), "this", "next")


def _months() -> tuple[Family, ...]:
    items = _items(facts.MONTHS, "month", "days", "month_zh")
    return (
        Family(
            name="days of a month",
            language="en",
            items=items,
            questions=("How many days does {month} have?", "How many days has {month}?", "How long is {month}?"),
            held_out=("How many days are in {month}?",),
            answer="{month} has {days} days.",
            statements=("{month} has {days} days.", "There are {days} days in {month}."),
        ),
        Family(
            name="days of a month",
            language="zh",
            items=items,
            questions=("{month_zh}有几天？", "{month_zh}一共有多少天？", "{month_zh}有多长？"),
            held_out=("{month_zh}有多少天？",),
            answer="{month_zh}有{days}天。",
            statements=("{month_zh}有{days}天。", "{month_zh}一共有{days}天。"),
        ),
    )


def _planets() -> tuple[Family, ...]:
    items = _items(facts.PLANETS, "planet", "place", "planet_zh", "place_zh")
    return (
        Family(
            name="planet",
            language="en",
            items=items,
            questions=(
                "Which planet is the {place} from the sun?",
                "What is the {place} planet?",
                "Name the {place} planet from the sun.",
            ),
            held_out=("What is the {place} planet from the sun?",),
            answer="The {place} planet from the sun is {planet}.",
            statements=("The {place} planet from the sun is {planet}.", "{planet} is the {place} planet."),
            weight=0.7,
        ),
        Family(
            name="planet",
            language="zh",
            items=items,
            questions=("离太阳第{place_zh}近的行星是哪个？", "第{place_zh}颗行星是什么？", "太阳系的第{place_zh}颗行星是哪颗？"),
            held_out=("离太阳第{place_zh}近的行星是什么？",),
            answer="离太阳第{place_zh}近的行星是{planet_zh}。",
            statements=("离太阳第{place_zh}近的行星是{planet_zh}。", "{planet_zh}是第{place_zh}颗行星。"),
            weight=0.7,
        ),
    )


def _jobs() -> tuple[Family, ...]:
    items = tuple(
        {**item, "a_person": with_article(item["person"]), "A_person": with_article(item["person"]).capitalize()}
        for item in _items(facts.JOBS, "person", "does", "person_zh", "does_zh")
    )
    return (
        Family(
            name="job",
            language="en",
            items=items,
            questions=("What does {a_person} do?", "What is the work of {a_person}?", "What is {a_person}?"),
            held_out=("What does {a_person} do every day?",),
            answer="{A_person} {does}.",
            statements=("{A_person} {does}.", "My friend is {a_person}, so my friend {does}."),
            weight=0.7,
        ),
        Family(
            name="job",
            language="zh",
            items=items,
            questions=("{person_zh}是做什么的？", "{person_zh}的工作是什么？", "{person_zh}做什么工作？"),
            held_out=("{person_zh}每天做什么？",),
            answer="{person_zh}的工作是{does_zh}。",
            statements=("{person_zh}的工作是{does_zh}。", "{person_zh}每天{does_zh}。"),
            weight=0.7,
        ),
    )


def _uses() -> tuple[Family, ...]:
    items = tuple(
        {**item, "a_thing": with_article(item["thing"])}
        for item in _items(facts.USES, "thing", "use", "thing_zh", "use_zh")
    )
    return (
        Family(
            name="use",
            language="en",
            items=items,
            questions=("What do you use {a_thing} for?", "What is {a_thing} for?", "Why do people need {a_thing}?"),
            held_out=("What can you do with {a_thing}?", "What do people use {a_thing} for?"),
            answer="You use {a_thing} {use}.",
            statements=("You use {a_thing} {use}.", "People need {a_thing} {use}."),
            weight=0.7,
        ),
        Family(
            name="use",
            language="zh",
            items=items,
            questions=("{thing_zh}是用来做什么的？", "{thing_zh}有什么用？", "{thing_zh}可以用来干什么？"),
            held_out=("{thing_zh}可以用来做什么？",),
            answer="{thing_zh}可以用来{use_zh}。",
            statements=("{thing_zh}可以用来{use_zh}。", "人们用{thing_zh}{use_zh}。"),
            weight=0.7,
        ),
    )


def _single_facts() -> tuple[Family, ...]:
    families = []
    for column, language in ((0, "en"), (1, "zh")):
        pairs = [row[column].split("=") for row in facts.SINGLE]
        families.append(
            Family(
                name="single fact",
                language="en" if language == "en" else "zh",
                items=_items(pairs, "question", "answer"),
                questions=("{question}", "{question}", "Question: {question}" if language == "en" else "问题：{question}"),
                held_out=("Answer this: {question}" if language == "en" else "回答一下：{question}",),
                answer="{answer}",
                statements=("{answer}",),
            )
        )
    return tuple(families)


def _translations() -> tuple[Family, ...]:
    words = all_words()
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


def _spelling() -> tuple[Family, ...]:
    items = tuple(
        {"word": word.english, "spelled": "-".join(word.english)} for word in all_words() if len(word.english) <= 8
    )
    english = Family(
        name="spelling",
        language="en",
        items=items,
        questions=("Spell the word {word}.", "How do you spell {word}?", 'Spell "{word}".', "Spell {word} for me."),
        held_out=('How do you spell "{word}"?', "Spell {word}."),
        answer="{spelled}",
        statements=("{word} is spelled {spelled}.", "{spelled}: {word}"),
        weight=2.0,
    )
    return (english,)


def _categories() -> tuple[Family, ...]:
    listed = [(word, CATEGORIES[name]) for name in CATEGORIES for word in words_of(name)]
    items = []
    for word, category in listed:
        noun = with_article(word.english) if category.countable else word.english
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
            questions=("What kind of thing is {noun}?", "What sort of thing is {noun}?", "{Noun} is what kind of thing?"),
            held_out=("Which kind of thing is {noun}?",),
            answer="{Noun} is {kind}.",
            statements=("{Noun} is {kind}.",),
            weight=1.5,
        ),
        Family(
            name="category",
            language="zh",
            items=tuple(items),
            questions=("{noun_zh}属于哪一类？", "{noun_zh}是哪一类东西？", "{noun_zh}属于什么类别？"),
            held_out=("{noun_zh}属于哪一类东西？",),
            answer="{noun_zh}是一种{kind_zh}。",
            statements=("{noun_zh}是一种{kind_zh}。",),
            weight=1.5,
        ),
    )
