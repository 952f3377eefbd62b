"""Families over numbers: small arithmetic, counting, number words."""

from __future__ import annotations

from collections.abc import Iterable

from tunerun.sprout.family import Family
from tunerun.sprout.tables import rows

_LARGEST = 10


def number_families() -> tuple[Family, ...]:
    """Returns all families whose answers are worked out."""
    small = range(_LARGEST + 1)
    return (
        *_arithmetic("addition", ((a, b, a + b) for a in small for b in small), "+", "plus", "加", 4.0),
        *_arithmetic("subtraction", ((a, b, a - b) for a in small for b in range(a + 1)), "-", "minus", "减", 3.0),
        *_counting(),
        *_number_words(),
    )


def _arithmetic(
    name: str, triples: Iterable[tuple[int, int, int]], sign: str, word: str, word_zh: str, weight: float
) -> tuple[Family, ...]:
    items = tuple({"a": str(a), "b": str(b), "result": str(result)} for a, b, result in triples)
    english = Family(
        name=name,
        language="en",
        items=items,
        questions=(
            f"What is {{a}} {sign} {{b}}?",
            f"How much is {{a}} {sign} {{b}}?",
            f"{{a}} {sign} {{b}} = ?",
            f"What is {{a}} {word} {{b}}?",
            f"Calculate {{a}} {sign} {{b}}.",
            f"What does {{a}} {word} {{b}} make?",
        ),
        held_out=(f"What's {{a}} {sign} {{b}}?", f"How much is {{a}} {word} {{b}}?"),
        answer="{result}",
        statements=(
            f"{{a}} {sign} {{b}} = {{result}}",
            f"{{a}} {sign} {{b}} = {{result}}",
            f"{{a}} {word} {{b}} is {{result}}.",
        ),
        weight=weight,
    )
    chinese = Family(
        name=name,
        language="zh",
        items=items,
        questions=(
            f"{{a}}{word_zh}{{b}}等于几？",
            f"{{a}}{word_zh}{{b}}是多少？",
            f"{{a}} {sign} {{b}} 等于几？",
            f"计算 {{a}} {sign} {{b}}。",
            f"算一算{{a}}{word_zh}{{b}}。",
            f"{{a}}{word_zh}{{b}}得几？",
        ),
        held_out=(f"{{a}}{word_zh}{{b}}等于多少？", f"{{a}} {sign} {{b}} 是多少？"),
        answer="{result}",
        statements=(f"{{a}} {sign} {{b}} = {{result}}", f"{{a}}{word_zh}{{b}}等于{{result}}。"),
        weight=weight,
    )
    return english, chinese


def _counting() -> tuple[Family, ...]:
    items = tuple(
        {"first": str(first), "last": str(last), "numbers": ", ".join(map(str, range(first, last + 1)))}
        for first in range(_LARGEST)
        for last in range(first + 2, min(first + 10, _LARGEST) + 1)
    )
    return (
        Family(
            name="counting",
            language="en",
            items=items,
            questions=(
                "Count from {first} to {last}.",
                "Can you count from {first} to {last}?",
                "Numbers from {first} to {last}?",
            ),
            held_out=("Please count from {first} to {last}.",),
            answer="{numbers}",
            statements=("{numbers}",),
        ),
        Family(
            name="counting",
            language="zh",
            items=items,
            questions=("从{first}数到{last}。", "请从{first}数到{last}。", "你能从{first}数到{last}吗？"),
            held_out=("帮我从{first}数到{last}。",),
            answer="{numbers}",
        ),
    )


def _number_words() -> tuple[Family, ...]:
    items = tuple(
        {"digits": str(number), "word": word, "word_zh": word_zh}
        for number, (word, word_zh) in enumerate(rows("number_words"))
    )
    return (
        Family(
            name="number word",
            language="en",
            items=items,
            questions=(
                "Write the number {digits} in words.",
                "How do you write {digits} in words?",
                "{digits} in words?",
            ),
            held_out=("Write {digits} in words.",),
            answer="{word}",
            statements=("{digits} is {word}.", "{word} = {digits}"),
            weight=0.5,
        ),
        Family(
            name="number word",
            language="zh",
            items=items,
            questions=("用汉字写出数字{digits}。", "数字{digits}用汉字怎么写？", "{digits}的汉字是什么？"),
            held_out=("{digits}用汉字怎么写？",),
            answer="{word_zh}",
            statements=("{digits}是{word_zh}。", "{word_zh} = {digits}"),
            weight=0.5,
        ),
    )
