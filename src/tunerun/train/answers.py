"""What the model in training answers, as it would be published: beside checkpoints, and to held-out rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from tunerun import text_metrics
from tunerun.models import ask
from tunerun.models.ask import Questions
from tunerun.strategies import SHARDED_STRATEGIES
from tunerun.train import ema, fitting
from tunerun.train.job import Job

Answers = list[dict[str, Any]]
"""As `ask.answer` returns them."""


def to_prompts(job: Job, questions: Questions, step: int) -> str | None:
    """Answers eval.prompts.

    Args:
        job: What is trained.
        questions: The prompts.
        step: Optimiser steps done.

    Returns:
        One JSON object a line; None where memory runs out.
    """
    try:
        found = _answers(job, questions)
    except fitting.OutOfMemory as error:
        if job.ranks.world > 1:
            raise
        # The checkpoint is worth more than the answers.
        print(f"warning: step {step}: eval.prompts are not answered: {error}", file=sys.stderr)
        return None
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in found)


def scores(job: Job) -> dict[str, float]:
    """Compares answers to held-out rows with the rows' own.

    Returns:
        `eval_bleu4`, `eval_rouge1`, `eval_rouge2` and `eval_rougeL`, from 0 to 100; nothing without
        `train.generate_rows`.

    Raises:
        OutOfMemory: One answer at a time does not fit.
    """
    if job.imitated is None:
        return {}
    questions, references = job.imitated
    ranks, count = job.ranks, len(references)
    if job.step.placement.strategy in SHARDED_STRATEGIES:
        # All ranks have to run the model as often, and answers differ in length.
        found = _answers(job, questions)
    else:
        mine = _answers(job, _some(questions, range(ranks.rank, count, ranks.world)))
        dealt = ranks.objects(mine)
        found = [dealt[number % ranks.world][number // ranks.world] for number in range(count)]
    measured = text_metrics.measure([item["answer"] for item in found], references)
    return {f"eval_{name}": value for name, value in measured.items()}


def _answers(job: Job, questions: Questions) -> Answers:
    longest, fit = job.step.eval.max_new_tokens, job.fitting

    def ask_all(network: Any) -> Answers:
        return ask.answer(network, questions, max_new_tokens=longest, batch_size=fit.now.eval_batch_size)

    # Every length of a text would be compiled anew.
    stance = torch.compiler.set_stance("force_eager") if job.step.compile else nullcontext()
    with stance, ema.applied(job.average, job.parameters):
        return fit.measure(lambda: job.engine.run(ask_all))


def _some(questions: Questions, numbers: Sequence[int]) -> Questions:
    texts = tuple(questions.texts[number] for number in numbers)
    return replace(questions, texts=texts, token_ids=tuple(questions.token_ids[number] for number in numbers))
