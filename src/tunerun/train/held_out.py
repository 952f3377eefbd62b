"""The loss and the metrics of an objective on held-out rows, while training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tunerun.train import ema, gradients
from tunerun.train.job import Job
from tunerun.train.objectives.objective import Setting, means


def measure(job: Job) -> dict[str, float]:
    """Measures what would be published on the first held-out rows, without label smoothing.

    Returns:
        `eval_loss`, NaN when no row has a trained token, and the objective's metrics, each named `eval_...`.
    """
    assert job.eval_examples is not None, "train.eval_steps needs held-out rows"
    config, count = job.step.eval, len(job.eval_examples)
    rows = range(count if config.max_rows is None else min(config.max_rows, count))
    was_training = job.network.training
    job.network.eval()
    setting = replace(job.setting, config=replace(job.setting.config, label_smoothing=0.0))
    with ema.applied(job.average, job.parameters):
        found = job.fitting.measure(lambda: _measured(job, setting, rows))
    job.network.train(was_training)
    return {f"eval_{name}": value for name, value in found.items()}


def _measured(job: Job, setting: Setting, rows: Sequence[int]) -> dict[str, float]:
    assert job.eval_examples is not None
    batch = gradients.divide(job, job.eval_examples, rows, job.fitting.now.eval_batch_size)
    if not batch.trained_tokens:
        return {"loss": float("nan")}
    total, sums = gradients.measure(job, batch, setting)
    return {"loss": total, **means(sums)}
