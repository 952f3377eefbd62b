"""Counts sprout's right answers by family: `python -m tunerun.sprout.score MODEL instruct_eval.jsonl`."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tunerun import markdown

_BATCH_ROWS = 64
_MAX_NEW_TOKENS = 48


def main() -> None:
    """Prints a Markdown table: right answers of all, by family and language."""
    parser = argparse.ArgumentParser(prog="python -m tunerun.sprout.score", description=__doc__)
    parser.add_argument("model", help="folder of the model")
    parser.add_argument("questions", type=Path, help="instruct_eval.jsonl as written by python -m tunerun.sprout")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.questions.read_text(encoding="utf-8").splitlines()]
    # Questions of about the same length waste the least on padding.
    rows.sort(key=lambda row: len(row["messages"][0]["content"]))
    print(table(rows, answer(arguments.model, [row["messages"][0]["content"] for row in rows])))


def answer(model_path: str, questions: Sequence[str]) -> list[str]:
    """Answers each question by greedy decoding, in its own dialogue.

    Args:
        model_path: Folder with weights, tokenizer and chat template.
        questions: What the user says.

    Returns:
        The answers, in the order of the questions, without special tokens.
    """
    # Not at the top: building the training data needs neither.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
    answers: list[str] = []
    for start in range(0, len(questions), _BATCH_ROWS):
        dialogues = [[{"role": "user", "content": text}] for text in questions[start : start + _BATCH_ROWS]]
        inputs = tokenizer.apply_chat_template(
            dialogues, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        outputs = model.generate(**inputs, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False)
        answers += tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def table(rows: Iterable[dict[str, Any]], answers: Iterable[str]) -> str:
    """Counts the answers that are right to the letter.

    Args:
        rows: Of instruct_eval.jsonl.
        answers: One for each row.

    Returns:
        A Markdown table with one line for each family and a last one for all.
    """
    right: Counter[tuple[str, str]] = Counter()
    asked: Counter[tuple[str, str]] = Counter()
    for row, given in zip(rows, answers, strict=True):
        is_right = given.strip() == row["messages"][1]["content"]
        for family in (row["family"], "all"):
            asked[family, row["language"]] += 1
            right[family, row["language"]] += is_right
    families = [*sorted({family for family, _ in asked} - {"all"}), "all"]
    scores = {key: f"{right[key]}/{count}" for key, count in asked.items()}
    lines = [[family, *(scores.get((family, language), "") for language in ("en", "zh"))] for family in families]
    return markdown.table(["family", "English", "Chinese"], lines)


if __name__ == "__main__":
    main()
