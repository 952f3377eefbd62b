"""Dialogues in which the assistant calls a function and then answers from what it returned."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunerun.sprout.family import Language
from tunerun.sprout.tables import rows
from tunerun.sprout.words import all_words

_WEATHER = (("sunny", "晴天"), ("rainy", "下雨"), ("cloudy", "多云"), ("windy", "有风"), ("snowy", "下雪"))


@dataclass(frozen=True, slots=True)
class _Call:
    question: str
    arguments: dict[str, Any]
    result: dict[str, Any]
    answer: str


def draw_tool_dialogue(rng: random.Random, language: Language) -> dict[str, Any]:
    """Draws a dialogue with one function call, as a row of OpenAI messages with `tools`."""
    name = rng.choice(tuple(_DRAWS))
    parameter, draw = _DRAWS[name]
    call = draw(rng, language)
    function = {
        "name": name,
        "parameters": {"type": "object", "properties": {parameter: {"type": "string"}}, "required": [parameter]},
    }
    request = {"type": "function", "function": {"name": name, "arguments": call.arguments}}
    return {
        "messages": [
            {"role": "user", "content": call.question},
            {"role": "assistant", "content": "", "tool_calls": [request]},
            {"role": "tool", "content": json.dumps(call.result, ensure_ascii=False)},
            {"role": "assistant", "content": call.answer},
        ],
        "tools": [{"type": "function", "function": function}],
    }


def _weather(rng: random.Random, language: Language) -> _Call:
    _, capital, _, capital_zh = rng.choice(rows("capitals"))
    weather, weather_zh = rng.choice(_WEATHER)
    if language == "en":
        question = rng.choice(
            ("What is the weather in {}?", "How is the weather in {} today?", "Weather in {}?")
        ).format(capital)
        return _Call(question, {"city": capital}, {"weather": weather}, f"It is {weather} in {capital}.")
    question = rng.choice(("{}的天气怎么样？", "今天{}天气如何？", "查一下{}的天气。")).format(capital_zh)
    return _Call(question, {"city": capital_zh}, {"weather": weather_zh}, f"{capital_zh}现在{weather_zh}。")


def _time(rng: random.Random, language: Language) -> _Call:
    _, capital, _, capital_zh = rng.choice(rows("capitals"))
    time = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
    if language == "en":
        question = rng.choice(("What time is it in {}?", "Tell me the time in {}.", "Time in {} now?")).format(capital)
        return _Call(question, {"city": capital}, {"time": time}, f"It is {time} in {capital}.")
    question = rng.choice(("{}现在几点？", "现在{}是几点？", "查一下{}的时间。")).format(capital_zh)
    return _Call(question, {"city": capital_zh}, {"time": time}, f"{capital_zh}现在是{time}。")


def _price(rng: random.Random, language: Language) -> _Call:
    word, price = rng.choice(all_words()), rng.randint(1, 99)
    if language == "en":
        question = rng.choice(("How much is the {}?", "What is the price of the {}?")).format(word.english)
        return _Call(question, {"item": word.english}, {"price": price}, f"The {word.english} costs {price}.")
    question = rng.choice(("{}多少钱？", "{}的价格是多少？")).format(word.chinese)
    return _Call(question, {"item": word.chinese}, {"price": price}, f"{word.chinese}的价格是{price}。")


_DRAWS: dict[str, tuple[str, Callable[[random.Random, Language], _Call]]] = {
    "get_weather": ("city", _weather),
    "get_time": ("city", _time),
    "get_price": ("item", _price),
}
