"""The gradient of one optimiser step.

It is that of the mean loss over the whole global batch, however that is cut into micro-batches: each one's summed loss
is divided by the same counts before it is differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tunerun.train import batches, health
from tunerun.train.job import Job, precision_of
from tunerun.train.objectives.objective import Batch, Examples, Sums, Totals, add_sums


@dataclass(frozen=True, slots=True)
class GlobalBatch:
    """The rows of an optimiser step."""

    parts: tuple[Batch, ...]
    """Micro-batches, in order."""
    totals: Totals

    @property
    def samples(self) -> list[int]:
        """Sample numbers."""
        return [sample for part in self.parts for sample in part.laid.samples]

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return sum(part.laid.tokens for part in self.parts)

    @property
    def trained_tokens(self) -> int:
        """Number of tokens the loss is computed from."""
        return sum(part.laid.trained_tokens for part in self.parts)


def global_batch(job: Job, index: int) -> GlobalBatch:
    """Returns the global batch of an optimiser step.

    Args:
        job: What is trained, on what.
        index: Number of the step, from 0.
    """
    config = job.step.train
    rows = batches.rows_of_step(
        index, rows=len(job.examples), global_batch_size=config.global_batch_size, seed=job.step.seed
    )
    return divide(job, job.examples, rows, job.step.micro_batch_size)


def divide(job: Job, examples: Examples, rows: Sequence[int], micro_batch_size: int) -> GlobalBatch:
    """Cuts rows into micro-batches and counts what the mean of their loss is over.

    Micro-batches that have nothing to learn are left out of a mean over tokens, unless none has.

    Args:
        job: What is trained.
        examples: The rows come from.
        rows: Row numbers.
        micro_batch_size: Rows computed at a time.
    """
    device = job.step.placement.device
    cut = batches.split(rows, micro_batch_size)
    parts = [job.objective.collate(examples, part, device) for part in cut]
    totals = Totals(tokens=sum(part.tokens for part in parts), rows=len(rows), kl=_kl(job, examples, cut))
    if job.objective.unit == "tokens":
        parts = [part for part in parts if part.tokens] or parts
    return GlobalBatch(tuple(parts), totals)


def accumulate(job: Job, batch: GlobalBatch, index: int) -> tuple[float, Sums]:
    """Adds the gradients of a global batch's mean loss to the parameters.

    Args:
        job: What is trained.
        batch: The rows.
        index: Number of the step, from 0.

    Returns:
        The mean loss, and the objective's metrics.

    Raises:
        StageError: The loss is not finite.
    """
    mean, sums = 0.0, dict[str, tuple[torch.Tensor, int]]()
    for part in batch.parts:
        with precision_of(job.step.placement):
            outcome = job.objective.loss(job.network, part, batch.totals, job.setting)
        value = float(outcome.loss.detach())
        health.check_finite(value, "loss", step=index + 1, samples=part.laid.samples)
        outcome.loss.backward()  # type: ignore[no-untyped-call]
        mean += value
        sums = add_sums(sums, outcome.sums)
    return mean, sums


@torch.no_grad()
def _kl(job: Job, examples: Examples, cut: Sequence[Sequence[int]]) -> float:
    """Estimates KL(policy || reference) over a global batch, for the objectives that need it."""
    if job.objective.kl is None:
        return 0.0
    was_training = job.network.training
    job.network.eval()
    with precision_of(job.step.placement):
        found = [job.objective.kl(job.network, examples, part, job.step.placement.device) for part in cut]
    job.network.train(was_training)
    return max(0.0, float(torch.cat(found).mean()))
