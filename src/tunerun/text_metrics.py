"""BLEU-4 and ROUGE-1/2/L of answers against references, in percent.

Words are separated by spaces and punctuation; Chinese characters and Japanese kana, which have no spaces between words,
count as a word each.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

Tokens = Sequence[str]

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")
_BLEU_ORDER = 4


def words(text: str) -> list[str]:
    """Cuts a text into words, single Chinese characters, and single punctuation marks."""
    return _WORD.findall(text)


def measure(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Compares answers with one reference each.

    Args:
        answers: At least one.
        references: As many.

    Returns:
        `bleu4` over all answers together, and `rouge1`, `rouge2` and `rougeL` as means, from 0 to 100. ROUGE does not
        tell upper from lower case.
    """
    assert answers and len(answers) == len(references)
    pairs = [(words(answer), words(reference)) for answer, reference in zip(answers, references, strict=True)]
    lower = [
        (words(answer.lower()), words(reference.lower())) for answer, reference in zip(answers, references, strict=True)
    ]
    return {
        "bleu4": bleu(pairs),
        "rouge1": 100.0 * sum(rouge_n(*pair, 1) for pair in lower) / len(pairs),
        "rouge2": 100.0 * sum(rouge_n(*pair, 2) for pair in lower) / len(pairs),
        "rougeL": 100.0 * sum(rouge_l(*pair) for pair in lower) / len(pairs),
    }


def bleu(pairs: Sequence[tuple[Tokens, Tokens]]) -> float:
    """Returns the BLEU-4 of a corpus (Papineni et al. 2002, "BLEU"), from 0 to 100.

    An order without a match counts as half a match, the next one as a quarter, and so on (Chen and Cherry 2014, "A
    Systematic Comparison of Smoothing Techniques", method 3).

    Args:
        pairs: Answer and reference, as words.
    """
    matches, totals = [0] * _BLEU_ORDER, [0] * _BLEU_ORDER
    for answer, reference in pairs:
        for order in range(1, _BLEU_ORDER + 1):
            found, wanted = _ngrams(answer, order), _ngrams(reference, order)
            matches[order - 1] += (found & wanted).total()
            totals[order - 1] += found.total()
    if not matches[0] or not all(totals):
        return 0.0
    logarithms, part = 0.0, 1.0
    for match, total in zip(matches, totals, strict=True):
        part = part if match else part / 2
        logarithms += math.log((match or part) / total)
    answer_words = sum(len(answer) for answer, _ in pairs)
    reference_words = sum(len(reference) for _, reference in pairs)
    brevity = min(0.0, 1.0 - reference_words / answer_words)
    return 100.0 * math.exp(brevity + logarithms / _BLEU_ORDER)


def rouge_n(answer: Tokens, reference: Tokens, order: int) -> float:
    """Returns the F1 of shared n-grams (Lin 2004, "ROUGE"), from 0 to 1."""
    found, wanted = _ngrams(answer, order), _ngrams(reference, order)
    return _f1((found & wanted).total(), found.total(), wanted.total())


def rouge_l(answer: Tokens, reference: Tokens) -> float:
    """Returns the F1 of the longest common subsequence (Lin 2004, "ROUGE", section 3.1), from 0 to 1."""
    lengths = [0] * (len(reference) + 1)
    for word in answer:
        diagonal = 0
        for place, other in enumerate(reference, start=1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if word == other else max(above, lengths[place - 1])
            diagonal = above
    return _f1(lengths[-1], len(answer), len(reference))


def _ngrams(tokens: Tokens, order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1))


def _f1(shared: int, found: int, wanted: int) -> float:
    return 2 * shared / (found + wanted) if shared else 0.0
