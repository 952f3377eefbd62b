"""The instruction data: rows of OpenAI messages drawn from all families, and the evaluation's rows."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from tunerun.sprout.copying import copying_families, made_up_name, made_up_name_zh
from tunerun.sprout.family import Exchange, Family, Language, draw, draw_held_out, pick
from tunerun.sprout.knowledge import knowledge_families
from tunerun.sprout.numbers import number_families
from tunerun.sprout.stories import draw_story
from tunerun.sprout.talk import talk_families
from tunerun.sprout.tools import draw_tool_dialogue
from tunerun.sprout.vocabulary import vocabulary_families

Row = dict[str, Any]

_SYSTEM_PROMPTS: dict[Language, tuple[str, ...]] = {
    "en": (
        "You are a helpful assistant.",
        "Answer briefly.",
        "You are a friendly assistant.",
        "Answer in one sentence.",
    ),
    "zh": ("你是一个乐于助人的助手。", "请简短回答。", "你是一个友好的助手。", "用一句话回答。"),
}
_SYSTEM_SHARE = 0.1
_TURN_SHARES = (0.7, 0.2, 0.1)
_STORY_SHARE = 0.03
_RECALL_SHARE = 0.03
_TOOL_SHARE = 0.03
_EVAL_QUESTIONS_PER_FAMILY = 20


def all_families() -> tuple[Family, ...]:
    """Returns every family, in a fixed order."""
    return (*talk_families(), *knowledge_families(), *vocabulary_families(), *number_families(), *copying_families())


def draw_rows(count: int, seed: int) -> Iterator[Row]:
    """Draws dialogues.

    Args:
        count: Of rows.
        seed: Of all choices.

    Yields:
        `{"messages": [{"role", "content"}, ...]}`, with `tools` where a function is called.
    """
    rng = random.Random(seed)
    by_language = families_by_language()
    for _ in range(count):
        language: Language = rng.choice(("en", "zh"))
        kind = rng.random()
        if kind < _TOOL_SHARE:
            yield draw_tool_dialogue(rng, language)
        elif kind < _TOOL_SHARE + _RECALL_SHARE:
            yield _recall(rng, language)
        else:
            turns = rng.choices((1, 2, 3), _TURN_SHARES)[0]
            exchanges = [draw_exchange(by_language[language], rng, language) for _ in range(turns)]
            system = rng.choice(_SYSTEM_PROMPTS[language]) if rng.random() < _SYSTEM_SHARE else ""
            yield {"messages": _messages(exchanges, system)}


def draw_eval_rows(seed: int) -> Iterator[Row]:
    """Draws the evaluation's single questions: as many of each family and language, in held-out phrasings.

    Yields:
        `{"family", "language", "messages": [user, assistant]}`.
    """
    rng = random.Random(seed)
    groups: dict[tuple[str, Language], list[Family]] = {}
    for family in all_families():
        groups.setdefault((family.name, family.language), []).append(family)
    for families in groups.values():
        drawn = {
            draw_held_out(families[number % len(families)], rng): None for number in range(_EVAL_QUESTIONS_PER_FAMILY)
        }
        for exchange in drawn:
            yield {"family": exchange.family, "language": exchange.language, "messages": _messages([exchange], "")}


def as_text(row: Row) -> str:
    """Writes out a dialogue about as the chat template does, for training the tokenizer."""
    parts = [json.dumps(tool) for tool in row["tools"]] if "tools" in row else []
    for message in row["messages"]:
        parts += [message["role"], message["content"]]
        if "tool_calls" in message:
            parts += [
                "<tool_call>",
                json.dumps(message["tool_calls"][0]["function"], ensure_ascii=False),
                "</tool_call>",
            ]
        if message["role"] == "tool":
            parts += ["<tool_response>", "</tool_response>"]
    return "\n".join(parts)


def families_by_language() -> dict[Language, tuple[Family, ...]]:
    """Returns the families of each language."""
    families = all_families()
    return {
        "en": tuple(family for family in families if family.language == "en"),
        "zh": tuple(family for family in families if family.language == "zh"),
    }


def draw_exchange(families: tuple[Family, ...], rng: random.Random, language: Language) -> Exchange:
    """Draws a question with its answer, now and then a request for a story."""
    if rng.random() < _STORY_SHARE:
        return draw_story(rng, language, held_out=False)
    return draw(pick(families, rng), rng)


def _messages(exchanges: list[Exchange], system: str) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": system}] if system else []
    for exchange in exchanges:
        messages.append({"role": "user", "content": exchange.question})
        messages.append({"role": "assistant", "content": exchange.answer})
    return messages


def _recall(rng: random.Random, language: Language) -> Row:
    """Makes a dialogue in which the user gives a name and asks for it later."""
    if language == "en":
        name = made_up_name(rng)
        given = rng.choice(("My name is {}.", "I am {}.", "Call me {}.")).format(name)
        asked = rng.choice(("What is my name?", "What's my name?", "Who am I?", "Do you remember my name?"))
        answers = (f"Nice to meet you, {name}!", f"Your name is {name}.")
    else:
        name = made_up_name_zh(rng)
        given = rng.choice(("我叫{}。", "我是{}。", "我的名字是{}。")).format(name)
        asked = rng.choice(("我叫什么？", "我叫什么名字？", "我是谁？", "你记得我的名字吗？"))
        answers = (f"很高兴认识你，{name}！", f"你叫{name}。")
    exchanges = [Exchange("recall", language, given, answers[0]), Exchange("recall", language, asked, answers[1])]
    return {"messages": _messages(exchanges, "")}
