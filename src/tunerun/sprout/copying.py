"""Families that are answered by looking back: repeating words, using the name that somebody gave."""

from __future__ import annotations

import random

from tunerun.sprout.family import Family
from tunerun.sprout.words import Word, taught_words

_SEED = 11
# Many, so that copying is learned and not the items: it is what the model needs for every other answer.
_ITEMS = 20_000
_HELD_OUT_ITEMS = 200
_CONSONANTS = "bcdfghjklmnprstvwz"
_VOWELS = "aeiou"
# Common characters of given names; random pairs of them make names that no table holds.
_NAME_CHARACTERS = (
    "明华伟芳娜静丽强磊军洋勇艳杰娟涛超秀霞平刚桂英文辉玲建国春梅雪云飞龙晨宇浩然子轩思雨佳欣海天乐安宁小红大山"
)
_SURNAMES = "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧"


def copying_families() -> tuple[Family, ...]:
    """Returns the families whose answer stands in the question."""
    rng = random.Random(_SEED)
    count = _ITEMS + _HELD_OUT_ITEMS
    # Each once, so that none is both taught and held out.
    phrases = list(dict.fromkeys(_phrase(rng, english=True) for _ in range(count)))
    phrases_zh = list(dict.fromkeys(_phrase(rng, english=False) for _ in range(count)))
    names = list(dict.fromkeys(made_up_name(rng) for _ in range(count)))
    names_zh = list(dict.fromkeys(made_up_name_zh(rng) for _ in range(count)))
    return (
        Family(
            name="repeat",
            language="en",
            items=_column("text", phrases[_HELD_OUT_ITEMS:]),
            held_out_items=_column("text", phrases[:_HELD_OUT_ITEMS]),
            questions=("Repeat after me: {text}", "Say this: {text}", "Repeat: {text}", "Copy these words: {text}"),
            held_out=("Please repeat: {text}",),
            answer="{text}",
            weight=2.0,
        ),
        Family(
            name="repeat",
            language="zh",
            items=_column("text", phrases_zh[_HELD_OUT_ITEMS:]),
            held_out_items=_column("text", phrases_zh[:_HELD_OUT_ITEMS]),
            questions=("跟我说：{text}", "请跟我读：{text}", "重复：{text}", "照着说：{text}"),
            held_out=("请重复：{text}",),
            answer="{text}",
            weight=2.0,
        ),
        Family(
            name="greet by name",
            language="en",
            items=_column("name", names[_HELD_OUT_ITEMS:]),
            held_out_items=_column("name", names[:_HELD_OUT_ITEMS]),
            questions=(
                "My name is {name}.",
                "I am {name}.",
                "Hello, I am {name}.",
                "Call me {name}.",
                "Hi, my name is {name}.",
            ),
            held_out=("Hello, my name is {name}.",),
            answer="Nice to meet you, {name}!",
            statements=("My name is {name}.", "Her name is {name}.", "{name} is a friend of mine.", "This is {name}."),
            weight=0.7,
        ),
        Family(
            name="greet by name",
            language="zh",
            items=_column("name", names_zh[_HELD_OUT_ITEMS:]),
            held_out_items=_column("name", names_zh[:_HELD_OUT_ITEMS]),
            questions=("我叫{name}。", "我是{name}。", "我的名字是{name}。", "大家叫我{name}。", "你好，我是{name}。"),
            held_out=("你好，我叫{name}。",),
            answer="很高兴认识你，{name}！",
            statements=("我叫{name}。", "他的名字是{name}。", "{name}是我的朋友。", "这是{name}。"),
            weight=0.7,
        ),
    )


def made_up_name(rng: random.Random) -> str:
    """Makes an English-looking name of two or three syllables."""
    syllables = (rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.choice((2, 2, 3))))
    return ("".join(syllables) + rng.choice(("", "", "n", "s", "l"))).capitalize()


def made_up_name_zh(rng: random.Random) -> str:
    """Makes a Chinese name: a surname and one or two characters."""
    return rng.choice(_SURNAMES) + "".join(rng.choices(_NAME_CHARACTERS, k=rng.choice((1, 2, 2))))


def _phrase(rng: random.Random, *, english: bool) -> str:
    words: list[Word] = rng.sample(taught_words(), rng.randint(1, 3))
    if english:
        return " ".join(word.english for word in words)
    return "".join(word.chinese for word in words)


def _column(key: str, values: list[str]) -> tuple[dict[str, str], ...]:
    return tuple({key: value} for value in values)
