"""The loss and the metrics of an objective on held-out rows, while training."""

from __future__ import annotations

import torch

from tunerun.train import gradients
from tunerun.train.job import Job, precision_of
from tunerun.train.objectives.objective import add_sums, means


@torch.no_grad()
def measure(job: Job) -> dict[str, float]:
    """Measures the network on the first held-out rows.

    Returns:
        `eval_loss`, NaN when no row has a trained token, and the objective's metrics, each named `eval_...`.
    """
    assert job.eval_examples is not None, "train.eval_steps needs held-out rows"
    config, count = job.step.eval, len(job.eval_examples)
    rows = range(count if config.max_rows is None else min(config.max_rows, count))
    was_training = job.network.training
    job.network.eval()
    batch = gradients.divide(job, job.eval_examples, rows, config.batch_size)
    total, sums = float("nan"), dict[str, tuple[torch.Tensor, int]]()
    if batch.trained_tokens:
        total = 0.0
        for part in batch.parts:
            with precision_of(job.step.placement):
                outcome = job.objective.loss(job.network, part, batch.totals, job.setting)
            total += float(outcome.loss)
            sums = add_sums(sums, outcome.sums)
    job.network.train(was_training)
    return {f"eval_{name}": value for name, value in {"loss": total, **means(sums)}.items()}
