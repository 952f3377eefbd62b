"""Short stories and everyday sentences, made by a small grammar, and requests for them."""

from __future__ import annotations

import random

from tunerun.sprout.copying import made_up_name, made_up_name_zh
from tunerun.sprout.family import Exchange, Language
from tunerun.sprout.words import Word, with_article, words_of

_FEELINGS = (("happy", "高兴"), ("sad", "难过"), ("tired", "累"), ("hungry", "饿"), ("brave", "勇敢"), ("kind", "善良"))
_WEATHER = (
    ("sunny", "天晴"),
    ("rainy", "下雨"),
    ("windy", "刮风"),
    ("cloudy", "多云"),
    ("cold", "很冷"),
    ("warm", "很暖和"),
)
_TIMES = (
    ("One morning", "一天早上"),
    ("One day", "有一天"),
    ("One evening", "一天晚上"),
    ("In spring", "春天里"),
    ("In winter", "冬天里"),
)
_ENDINGS = (
    ("They became good friends.", "他们成了好朋友。"),
    ("Then they went home together.", "然后他们一起回家了。"),
    ("They played until the sun went down.", "他们一直玩到太阳下山。"),
    ("Everyone was happy in the end.", "最后大家都很高兴。"),
    ("It was a very good day.", "这真是美好的一天。"),
)
_REQUESTS: dict[Language, tuple[str, ...]] = {
    "en": (
        "Tell me a story about {}.",
        "Tell me a short story about {}.",
        "Write a story about {}.",
        "I want a story about {}.",
    ),
    "zh": ("讲一个关于{}的故事。", "给我讲一个{}的小故事。", "写一个关于{}的故事。", "我想听{}的故事。"),
}
_HELD_OUT_REQUESTS: dict[Language, str] = {"en": "Please write a short story about {}.", "zh": "请讲一个{}的故事。"}


def tell(rng: random.Random, language: Language, hero: Word) -> str:
    """Tells a story of four to six sentences about an animal."""
    friend = rng.choice([word for word in _animals() if word != hero])
    place, food = rng.choice(words_of("place")), rng.choice(words_of("fruit"))
    feeling, weather = rng.choice(_FEELINGS), rng.choice(_WEATHER)
    time, ending = rng.choice(_TIMES), rng.choice(_ENDINGS)
    if language == "en":
        sentences = (
            f"{time[0]}, {with_article(hero.english)} went to the {place.english}.",
            f"It was {weather[0]}, and the {hero.english} was {feeling[0]}.",
            f"There it met {with_article(friend.english)}.",
            rng.choice(
                (
                    f"The {friend.english} gave the {hero.english} {with_article(food.english)}.",
                    f"The {hero.english} and the {friend.english} ate {with_article(food.english)}.",
                    (
                        f'"Do you want {with_article(food.english)}?" asked the {friend.english}. '
                        f'"Yes, please," said the {hero.english}.'
                    ),
                )
            ),
            ending[0],
        )
        return " ".join(sentences)
    return "".join(
        (
            f"{time[1]}，一只{hero.chinese}来到了{place.chinese}。",
            f"那天{weather[1]}，{hero.chinese}很{feeling[1]}。",
            f"它在那里遇见了一只{friend.chinese}。",
            rng.choice(
                (
                    f"{friend.chinese}给了{hero.chinese}一个{food.chinese}。",
                    f"{hero.chinese}和{friend.chinese}一起吃了一个{food.chinese}。",
                    f"“你想吃{food.chinese}吗？”{friend.chinese}问。“好的，谢谢。”{hero.chinese}说。",
                )
            ),
            ending[1],
        )
    )


def draw_story(rng: random.Random, language: Language, *, held_out: bool) -> Exchange:
    """Draws a request for a story and the story; any story about the animal would be right.

    Args:
        rng: Where the choices come from.
        language: Of both.
        held_out: Asks in the phrasing kept for the evaluation.
    """
    hero = rng.choice(_animals())
    request = _HELD_OUT_REQUESTS[language] if held_out else rng.choice(_REQUESTS[language])
    name = with_article(hero.english) if language == "en" else hero.chinese
    return Exchange("story", language, request.format(name), tell(rng, language, hero))


def draw_text(rng: random.Random, language: Language) -> str:
    """Draws a story or a few everyday sentences for the corpus."""
    if rng.random() < 0.5:
        return tell(rng, language, rng.choice(_animals()))
    sentences = [_sentence(rng, language) for _ in range(rng.randint(2, 5))]
    return (" " if language == "en" else "").join(sentences)


def _sentence(rng: random.Random, language: Language) -> str:
    person, place = rng.choice(words_of("person")), rng.choice(words_of("place"))
    thing, colour = (
        rng.choice(words_of(rng.choice(("clothing", "fruit", "flower", "furniture")))),
        rng.choice(words_of("colour")),
    )
    food, drink = rng.choice(words_of("food")), rng.choice(words_of("drink"))
    vehicle, number = rng.choice(words_of("vehicle")), rng.randint(2, 20)
    if language == "en":
        return rng.choice(
            (
                f"{made_up_name(rng)} is a {person.english} and lives near the {place.english}.",
                f"The {person.english} goes to the {place.english} by {vehicle.english}.",
                f"My {person.english} has a {colour.english} {thing.english}.",
                f"I like {food.english} and {drink.english}, but I do not like {rng.choice(words_of('food')).english}.",
                f"There are {number} people in the {place.english} today.",
                f"The {thing.english} is {colour.english}, and it is very beautiful.",
                f"{made_up_name(rng)} bought {number} things at the market.",
                (
                    f"Yesterday the {person.english} saw {with_article(rng.choice(_animals()).english)} "
                    f"near the {place.english}."
                ),
                f"Do you know the way to the {place.english}? Yes, I can help you.",
            )
        )
    return rng.choice(
        (
            f"{made_up_name_zh(rng)}是一位{person.chinese}，住在{place.chinese}附近。",
            f"{person.chinese}坐{vehicle.chinese}去{place.chinese}。",
            f"我的{person.chinese}有一个{colour.chinese}的{thing.chinese}。",
            f"我喜欢{food.chinese}和{drink.chinese}，但是不喜欢{rng.choice(words_of('food')).chinese}。",
            f"今天{place.chinese}里有{number}个人。",
            f"这个{thing.chinese}是{colour.chinese}的，非常漂亮。",
            f"{made_up_name_zh(rng)}在市场买了{number}样东西。",
            f"昨天{person.chinese}在{place.chinese}附近看见了一只{rng.choice(_animals()).chinese}。",
            f"你知道去{place.chinese}的路吗？知道，我可以帮你。",
        )
    )


def _animals() -> tuple[Word, ...]:
    return words_of("animal") + words_of("bird")
