"""The gradient of one optimiser step.

It is that of the mean loss over the whole global batch, however that is cut into micro-batches and whichever rank
computes them: each one's summed loss is divided by the same counts before it is differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tunerun.models.batch import padded
from tunerun.train import batches, health
from tunerun.train.job import Job
from tunerun.train.objectives.objective import Batch, Examples, Setting, Sums, Totals, add_sums

# Of the tokens of a micro-batch in half precision: large enough that packed rows which are nearly full become alike.
_TOKENS_MULTIPLE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class GlobalBatch:
    """The rows of an optimiser step, and which of them this rank computes."""

    parts: tuple[Batch, ...]
    """Micro-batches of this rank, in order."""
    passes: int
    """Micro-batches that each rank computes: one with fewer repeats one of them at no weight, so that all ranks run the
    model as often."""
    filler: Batch | None
    """What is repeated; None when nothing is."""
    totals: Totals
    tokens: int
    """Number of tokens, over all ranks."""
    trained_tokens: int
    """Number of tokens the loss is computed from, over all ranks."""

    @property
    def samples(self) -> list[int]:
        """Sample numbers on this rank."""
        return [sample for part in self.parts for sample in part.laid.samples]

    @property
    def work(self) -> list[tuple[Batch, float]]:
        """What this rank computes, each with its weight: 1, or 0 for a repetition."""
        repeated = [(self.filler, 0.0)] * (self.passes - len(self.parts)) if self.filler is not None else []
        return [*((part, 1.0) for part in self.parts), *repeated]


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
    return divide(job, job.examples, rows, job.fitting.now.micro_batch_size)


def divide(job: Job, examples: Examples, rows: Sequence[int], micro_batch_size: int) -> GlobalBatch:
    """Cuts rows into micro-batches, deals them out to the ranks and counts what the mean of their loss is over.

    Micro-batches that have nothing to learn are left out of a mean over tokens, unless none has.

    Args:
        job: What is trained.
        examples: The rows come from.
        rows: Row numbers.
        micro_batch_size: Rows computed at a time.
    """
    ranks = job.ranks
    cut = batches.split(rows, min(micro_batch_size, math.ceil(len(rows) / ranks.world)))
    found = [_collated(job, examples, part) for part in cut[ranks.rank :: ranks.world]]
    parts = [part for part in found if part.tokens] if job.objective.unit == "tokens" else found
    counts = ranks.numbers(
        [
            len(parts),
            sum(part.tokens for part in found),
            sum(part.laid.tokens for part in found),
            sum(part.laid.trained_tokens for part in found),
        ]
    )
    tokens, all_tokens, trained_tokens = (int(sum(values[column] for values in counts)) for column in (1, 2, 3))
    passes = int(max(values[0] for values in counts))
    if not passes:
        parts, passes = found, math.ceil(len(cut) / ranks.world)
    return GlobalBatch(
        parts=tuple(parts),
        passes=passes,
        filler=None if len(parts) == passes else parts[0] if parts else _filler(job, examples, cut),
        totals=Totals(tokens=tokens, rows=len(rows), kl=_kl(job, examples, cut)),
        tokens=all_tokens,
        trained_tokens=trained_tokens,
    )


def _collated(job: Job, examples: Examples, rows: Sequence[int]) -> Batch:
    """Lays rows out on the host and sends them to the device, in half precision with padding."""
    placement = job.step.placement
    found = job.objective.collate(examples, rows, "cpu")
    if placement.precision == "bf16":
        found = replace(found, laid=padded(found.laid, _TOKENS_MULTIPLE))
    return found.to(placement.device)


def accumulate(job: Job, batch: GlobalBatch) -> tuple[list[Tensor], Sums]:
    """Adds the gradients of a global batch's mean loss to the parameters.

    Args:
        job: What is trained.
        batch: The rows.

    Returns:
        What each micro-batch of this rank adds to the mean loss, and the metrics of this rank.
    """
    losses: list[Tensor] = []
    sums: Sums = {}
    work = batch.work
    for number, (part, weight) in enumerate(work, start=1):
        loss, found = job.engine.learn(_weighted(job, part, batch.totals, weight), last=number == len(work))
        if weight:
            losses.append(loss)
            sums = add_sums(sums, found)
    return losses, sums


def measure(job: Job, batch: GlobalBatch, setting: Setting) -> tuple[float, Sums]:
    """Returns the mean loss of a global batch and its metrics, over all ranks, without gradients."""
    total = 0.0
    sums: Sums = {}
    for part, weight in batch.work:
        loss, found = job.engine.run(_weighted(job, part, batch.totals, weight, setting))
        if weight:
            total += float(loss)
            sums = add_sums(sums, found)
    return sum(value for (value,) in job.ranks.numbers([total])), all_sums(job, sums)


def all_sums(job: Job, sums: Sums) -> Sums:
    """Adds up the metrics of all ranks."""
    if job.ranks.world == 1:
        return sums
    plain = {name: (float(value), count) for name, (value, count) in sums.items()}
    added: Sums = {}
    for found in job.ranks.objects(plain):
        added = add_sums(added, found)
    return added


def check_losses(job: Job, batch: GlobalBatch, losses: Sequence[float], index: int) -> float:
    """Returns the mean loss of a global batch over all ranks.

    Raises:
        NotFinite: A micro-batch of some rank has a loss that is not finite; names its samples. All ranks raise it.
    """
    told = job.ranks.numbers([sum(losses)])
    total = sum(value for (value,) in told)
    if math.isfinite(total):
        return total
    samples = [
        sample
        for part, value in zip(batch.parts, losses, strict=True)
        if not math.isfinite(value)
        for sample in part.laid.samples
    ]
    everywhere = [sample for found in job.ranks.objects(samples) for sample in found]
    raise health.NotFinite(total, "loss", step=index + 1, samples=everywhere)


def _weighted(job: Job, part: Batch, totals: Totals, weight: float, setting: Setting | None = None) -> Any:
    """Returns the function of the network that a pass computes."""

    def function(network: Any) -> tuple[Tensor, Sums]:
        outcome = job.objective.loss(network, part, totals, job.setting if setting is None else setting)
        return outcome.loss * weight if weight != 1.0 else outcome.loss, outcome.sums

    return function


def _filler(job: Job, examples: Examples, cut: Sequence[Sequence[int]]) -> Batch:
    """Returns the first micro-batch of the global batch that has something to learn."""
    found = (_collated(job, examples, part) for part in cut)
    return next(part for part in found if part.tokens or job.objective.unit == "rows")


def _kl(job: Job, examples: Examples, cut: Sequence[Sequence[int]]) -> float:
    """Estimates KL(policy || reference) over a global batch, for the objectives that need it."""
    function, device = job.objective.kl, job.step.placement.device
    if function is None:
        return 0.0

    def of_rows(rows: Sequence[int]) -> Tensor:
        found: Tensor = job.engine.run(lambda network: function(network, examples, rows, device))
        return found.float().cpu()

    was_training = job.network.training
    job.network.eval()
    found = job.ranks.deal(cut, of_rows)
    job.network.train(was_training)
    return max(0.0, float(torch.cat(found).mean()))
