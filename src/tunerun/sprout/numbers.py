"""Families over numbers: small arithmetic, counting, comparing, sorting."""

from __future__ import annotations

import random
from collections.abc import Iterable

from tunerun.sprout.family import Family
from tunerun.sprout.tables import rows

_SEED = 7
_SORTS = 3000
_HELD_OUT_SORTS = 200
_LARGEST = 20


def number_families() -> tuple[Family, ...]:
    """Returns all families whose answers are worked out."""
    to_twenty = range(_LARGEST + 1)
    return (
        *_arithmetic("addition", ((a, b, a + b) for a in to_twenty for b in to_twenty), "+", "plus", "加", 4.0),
        *_arithmetic("subtraction", ((a, b, a - b) for a in to_twenty for b in range(a + 1)), "-", "minus", "减", 3.0),
        *_arithmetic("multiplication", ((a, b, a * b) for a in range(10) for b in range(10)), "*", "times", "乘", 2.0),
        *_counting(),
        *_comparing(),
        *_sorting(),
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
        answer=f"{{a}} {sign} {{b}} = {{result}}",
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
        answer=f"{{a}} {sign} {{b}} = {{result}}",
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


def _comparing() -> tuple[Family, ...]:
    pairs = [(a, b) for a in range(_LARGEST + 1) for b in range(_LARGEST + 1) if a != b]
    larger = tuple({"a": str(a), "b": str(b), "larger": str(max(a, b)), "smaller": str(min(a, b))} for a, b in pairs)
    greater = tuple(
        {"a": str(a), "b": str(b), "verdict": "Yes" if a > b else "No", "verdict_zh": "是的" if a > b else "不是"}
        | {"relation": "larger" if a > b else "smaller", "relation_zh": "大" if a > b else "小"}
        for a, b in pairs
    )
    return (
        Family(
            name="larger",
            language="en",
            items=larger,
            questions=(
                "Which is larger, {a} or {b}?",
                "Which number is larger: {a} or {b}?",
                "What is larger, {a} or {b}?",
            ),
            held_out=("Which is the larger number, {a} or {b}?",),
            answer="{larger} is larger than {smaller}.",
            statements=("{larger} is larger than {smaller}.", "{smaller} is smaller than {larger}."),
        ),
        Family(
            name="larger",
            language="zh",
            items=larger,
            questions=("{a}和{b}哪个大？", "{a}和{b}哪个更大？", "{a}大还是{b}大？"),
            held_out=("{a}和{b}，哪个数大？",),
            answer="{larger}比{smaller}大。",
            statements=("{larger}比{smaller}大。", "{smaller}比{larger}小。"),
        ),
        Family(
            name="yes or no",
            language="en",
            items=greater,
            questions=("Is {a} larger than {b}?", "Is {a} greater than {b}?", "Is {a} more than {b}?"),
            held_out=("Is the number {a} larger than {b}?",),
            answer="{verdict}, {a} is {relation} than {b}.",
        ),
        Family(
            name="yes or no",
            language="zh",
            items=greater,
            questions=("{a}比{b}大吗？", "{a}大于{b}吗？", "{a}是不是比{b}大？"),
            held_out=("{a}是不是大于{b}？",),
            answer="{verdict_zh}，{a}比{b}{relation_zh}。",
        ),
    )


def _sorting() -> tuple[Family, ...]:
    rng = random.Random(_SEED)
    drawn = {tuple(rng.sample(range(_LARGEST + 1), 3)): None for _ in range(_SORTS + _HELD_OUT_SORTS)}
    items = tuple(
        {"numbers": ", ".join(map(str, numbers)), "sorted": ", ".join(map(str, sorted(numbers)))} for numbers in drawn
    )
    taught, held_out = items[_HELD_OUT_SORTS:], items[:_HELD_OUT_SORTS]
    return (
        Family(
            name="sorting",
            language="en",
            items=taught,
            held_out_items=held_out,
            questions=("Sort {numbers}.", "Sort these numbers: {numbers}", "Put in order: {numbers}"),
            held_out=("Sort the numbers {numbers}.",),
            answer="{sorted}",
            weight=2.0,
        ),
        Family(
            name="sorting",
            language="zh",
            items=taught,
            held_out_items=held_out,
            questions=("把{numbers}排序。", "从小到大排列：{numbers}", "给这些数字排序：{numbers}"),
            held_out=("把这些数字从小到大排列：{numbers}",),
            answer="{sorted}",
            weight=2.0,
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
