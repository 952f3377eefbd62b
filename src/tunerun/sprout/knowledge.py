"""Families over the tables of facts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tunerun.sprout.family import LANGUAGES, Family, Item
from tunerun.sprout.tables import rows
from tunerun.sprout.words import with_article


def knowledge_families() -> tuple[Family, ...]:
    """Returns all families whose answers stand in a table of facts."""
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
    )


def _items(table: Iterable[Sequence[str]], *columns: str) -> tuple[Item, ...]:
    return tuple(dict(zip(columns, row, strict=True)) for row in table)


def _capitals() -> tuple[Family, ...]:
    items = _items(rows("capitals"), "country", "capital", "country_zh", "capital_zh")
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
        answer="{capital}.",
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
        answer="{capital_zh}。",
        statements=(
            "{country_zh}的首都是{capital_zh}。",
            "{capital_zh}是{country_zh}的首都。",
            "{capital_zh}在{country_zh}。",
        ),
        weight=3.0,
    )
    return english, chinese


def _colours() -> tuple[Family, ...]:
    items = _items(rows("colours"), "thing", "colour", "thing_zh", "colour_zh")
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
        answer="It is {colour}.",
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
        answer="是{colour_zh}的。",
        statements=("{thing_zh}是{colour_zh}的。", "{thing_zh}的颜色是{colour_zh}。"),
    )
    return english, chinese


def _animals() -> tuple[Family, ...]:
    sounds = _items(rows("sounds"), "animal", "sound", "animal_zh", "sound_zh")
    legs = tuple(
        {**item, "an_animal": with_article(item["animal"])}
        for item in _items(rows("legs"), "animal", "legs", "animal_zh", "legs_zh")
    )
    return (
        Family(
            name="sound",
            language="en",
            items=sounds,
            questions=(
                "What does the {animal} say?",
                "What sound does the {animal} make?",
                "How does the {animal} sound?",
            ),
            held_out=("Which sound does the {animal} make?",),
            answer="It says {sound}.",
            statements=("The {animal} says {sound}.", "{sound}, says the {animal}."),
            weight=0.5,
        ),
        Family(
            name="sound",
            language="zh",
            items=sounds,
            questions=("{animal_zh}怎么叫？", "{animal_zh}的叫声是什么？", "{animal_zh}叫起来是什么声音？"),
            held_out=("{animal_zh}是怎么叫的？",),
            answer="{sound_zh}。",
            statements=("{animal_zh}的叫声是{sound_zh}。", "{animal_zh}{sound_zh}叫。"),
            weight=0.5,
        ),
        Family(
            name="legs",
            language="en",
            items=legs,
            questions=(
                "How many legs does {an_animal} have?",
                "How many legs has {an_animal}?",
                "Count the legs of {an_animal}.",
            ),
            held_out=("How many legs are there on {an_animal}?",),
            answer="It has {legs} legs.",
            statements=("The {animal} has {legs} legs.",),
            weight=0.5,
        ),
        Family(
            name="legs",
            language="zh",
            items=legs,
            questions=("{animal_zh}有几条腿？", "{animal_zh}有多少条腿？", "一只{animal_zh}有几条腿？"),
            held_out=("一只{animal_zh}有多少条腿？",),
            answer="{legs_zh}条腿。",
            statements=("{animal_zh}有{legs_zh}条腿。",),
            weight=0.5,
        ),
    )


def _opposites() -> tuple[Family, ...]:
    table = rows("opposites")
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
            answer="{opposite}",
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
            answer="{opposite}",
            statements=("{word}的反义词是{opposite}。", "{word}和{opposite}是一对反义词。"),
            weight=1.5,
        ),
    )


def _calendar() -> tuple[Family, ...]:
    families = []
    for name, english, chinese in (
        ("day", [row[0] for row in rows("days")], [row[1] for row in rows("days")]),
        ("month", [row[0] for row in rows("months")], [row[2] for row in rows("months")]),
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
                answer="{next}.",
                statements=("{next} comes after {this}.", "After {this} comes {next}.", "{this}, {next}"),
            ),
            Family(
                name=name,
                language="zh",
                items=items[1],
                questions=("{this}之后是什么？", "{this}后面是哪个？", "{this}过后是什么？"),
                held_out=("{this}后面是什么？",),
                answer="{next}。",
                statements=("{this}之后是{next}。", "{this}过后就是{next}。", "{this}、{next}"),
            ),
        ]
    return tuple(families)


def _neighbours(names: Sequence[str]) -> tuple[Item, ...]:
    following = (*names[1:], names[0])
    return _items(zip(names, following, strict=True), "this", "next")


def _months() -> tuple[Family, ...]:
    items = _items(rows("months"), "month", "days", "month_zh")
    return (
        Family(
            name="days of a month",
            language="en",
            items=items,
            questions=("How many days does {month} have?", "How many days has {month}?", "How long is {month}?"),
            held_out=("How many days are in {month}?",),
            answer="{days} days.",
            statements=("{month} has {days} days.", "There are {days} days in {month}."),
        ),
        Family(
            name="days of a month",
            language="zh",
            items=items,
            questions=("{month_zh}有几天？", "{month_zh}一共有多少天？", "{month_zh}有多长？"),
            held_out=("{month_zh}有多少天？",),
            answer="{days}天。",
            statements=("{month_zh}有{days}天。", "{month_zh}一共有{days}天。"),
        ),
    )


def _planets() -> tuple[Family, ...]:
    items = _items(rows("planets"), "planet", "place", "planet_zh", "place_zh")
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
            answer="{planet}.",
            statements=("The {place} planet from the sun is {planet}.", "{planet} is the {place} planet."),
            weight=0.7,
        ),
        Family(
            name="planet",
            language="zh",
            items=items,
            questions=(
                "离太阳第{place_zh}近的行星是哪个？",
                "第{place_zh}颗行星是什么？",
                "太阳系的第{place_zh}颗行星是哪颗？",
            ),
            held_out=("离太阳第{place_zh}近的行星是什么？",),
            answer="{planet_zh}。",
            statements=("离太阳第{place_zh}近的行星是{planet_zh}。", "{planet_zh}是第{place_zh}颗行星。"),
            weight=0.7,
        ),
    )


def _jobs() -> tuple[Family, ...]:
    items = tuple(
        {**item, "a_person": with_article(item["person"]), "A_person": with_article(item["person"]).capitalize()}
        for item in _items(rows("jobs"), "person", "does", "person_zh", "does_zh")
    )
    return (
        Family(
            name="job",
            language="en",
            items=items,
            questions=("What does {a_person} do?", "What is the work of {a_person}?", "What is {a_person}?"),
            held_out=("What does {a_person} do every day?",),
            answer="Someone who {does}.",
            statements=("{A_person} {does}.", "My friend is {a_person}, so my friend {does}."),
            weight=0.7,
        ),
        Family(
            name="job",
            language="zh",
            items=items,
            questions=("{person_zh}是做什么的？", "{person_zh}的工作是什么？", "{person_zh}做什么工作？"),
            held_out=("{person_zh}每天做什么？",),
            answer="{does_zh}。",
            statements=("{person_zh}的工作是{does_zh}。", "{person_zh}每天{does_zh}。"),
            weight=0.7,
        ),
    )


def _uses() -> tuple[Family, ...]:
    items = tuple(
        {**item, "a_thing": with_article(item["thing"])}
        for item in _items(rows("uses"), "thing", "use", "thing_zh", "use_zh")
    )
    return (
        Family(
            name="use",
            language="en",
            items=items,
            questions=("What do you use {a_thing} for?", "What is {a_thing} for?", "Why do people need {a_thing}?"),
            held_out=("What can you do with {a_thing}?", "What do people use {a_thing} for?"),
            answer="You use it {use}.",
            statements=("You use {a_thing} {use}.", "People need {a_thing} {use}."),
            weight=0.7,
        ),
        Family(
            name="use",
            language="zh",
            items=items,
            questions=("{thing_zh}是用来做什么的？", "{thing_zh}有什么用？", "{thing_zh}可以用来干什么？"),
            held_out=("{thing_zh}可以用来做什么？",),
            answer="用来{use_zh}。",
            statements=("{thing_zh}可以用来{use_zh}。", "人们用{thing_zh}{use_zh}。"),
            weight=0.7,
        ),
    )


def _single_facts() -> tuple[Family, ...]:
    table = rows("single_facts")
    tables = {"en": [row[:2] for row in table], "zh": [row[2:] for row in table]}
    lead_ins = {"en": ("Question: ", "Answer this: "), "zh": ("问题：", "回答一下：")}
    return tuple(
        Family(
            name="single fact",
            language=language,
            items=_items(tables[language], "question", "answer"),
            questions=("{question}", "{question}", lead_ins[language][0] + "{question}"),
            held_out=(lead_ins[language][1] + "{question}",),
            answer="{answer}",
            statements=("{answer}",),
        )
        for language in LANGUAGES
    )
