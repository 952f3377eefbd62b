from __future__ import annotations

import random

import pytest

from tunerun import text_metrics

WORDS = text_metrics.words("the cat sat on a mat and it was happy 你好世界我是小模型")


def _texts(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Returns answers and references that share some of their words."""
    generator = random.Random(seed)
    references = [" ".join(generator.choices(WORDS, k=generator.randint(4, 15))) for _ in range(count)]
    answers = []
    for reference in references:
        kept = [word if generator.random() < 0.7 else generator.choice(WORDS) for word in reference.split()]
        answers.append(" ".join(kept[: generator.randint(2, len(kept))]))
    return answers, references


def test_words_are_cut_at_spaces_punctuation_and_around_every_chinese_character() -> None:
    assert text_metrics.words("Hello, world_1! 你好 GPT模型。") == [
        "Hello",
        ",",
        "world_1",
        "!",
        *"你好",
        "GPT",
        *"模型。",
    ]


def test_equal_texts_have_a_hundred_and_texts_without_a_common_word_nothing() -> None:
    same = text_metrics.measure(["a cat sat here", "今天天气很好"], ["a cat sat here", "今天天气很好"])
    assert same == {"bleu4": pytest.approx(100), "rouge1": 100, "rouge2": 100, "rougeL": 100}
    assert set(text_metrics.measure(["x y z w"], ["a b c d"]).values()) == {0.0}


def test_an_empty_answer_has_nothing() -> None:
    assert set(text_metrics.measure(["", ""], ["a b c d e", "f"]).values()) == {0.0}


def test_values_worked_out_by_hand() -> None:
    # 5 of 6 words, 3 of 5 pairs, 1 of 4 threes; the longest common subsequence is all but the verb.
    answer, reference = text_metrics.words("the cat is on the mat"), text_metrics.words("the cat sat on the mat")
    assert text_metrics.rouge_n(answer, reference, 1) == pytest.approx(5 / 6)
    assert text_metrics.rouge_n(answer, reference, 2) == pytest.approx(3 / 5)
    assert text_metrics.rouge_l(answer, reference) == pytest.approx(5 / 6)
    # Orders 1 to 4: 5/6, 3/5, 1/4, and no match of 3, which counts as a half.
    wanted = 100 * (5 / 6 * 3 / 5 * 1 / 4 * 0.5 / 3) ** 0.25
    assert text_metrics.bleu([(answer, reference)]) == pytest.approx(wanted)


@pytest.mark.parametrize("seed", range(5))
def test_bleu_is_that_of_sacrebleu(seed: int) -> None:
    sacrebleu = pytest.importorskip("sacrebleu", reason="needs sacrebleu to compare with")
    answers, references = _texts(8, seed)
    cut = (
        [" ".join(text_metrics.words(text)) for text in answers],
        [" ".join(text_metrics.words(t)) for t in references],
    )
    wanted = sacrebleu.corpus_bleu(cut[0], [cut[1]], tokenize="none", force=True).score
    assert text_metrics.measure(answers, references)["bleu4"] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_rouge_is_that_of_rouge_score(seed: int) -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="needs rouge-score to compare with")
    answers, references = _texts(8, seed)

    class Tokenizer:
        def tokenize(self, text: str) -> list[str]:
            return text_metrics.words(text.lower())

    judge = scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Tokenizer())
    scores = [judge.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    found = text_metrics.measure(answers, references)
    for name in ("rouge1", "rouge2", "rougeL"):
        wanted = 100 * sum(score[name].fmeasure for score in scores) / len(scores)
        assert found[name] == pytest.approx(wanted, abs=1e-6)
