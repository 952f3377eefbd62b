"""The training loop: optimiser steps, and what is written between them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tunerun.errors import Preempted
from tunerun.progress import Progress
from tunerun.train import checkpoint, ema, gradients, health, held_out, optim
from tunerun.train.checkpoint import Progressed
from tunerun.train.job import Job
from tunerun.train.metrics import Tracker, peak_memory_bytes
from tunerun.train.objectives.objective import Sums, add_sums, means
from tunerun.train.signals import StopRequest


@dataclass(frozen=True, slots=True)
class StepResult:
    """What an optimiser step did."""

    loss: float
    """Mean over the global batch, before the step."""
    count: int
    """What the mean is over: trained tokens, or rows."""
    sums: Sums
    """The objective's own metrics."""
    tokens: int
    trained_tokens: int
    learning_rate: float
    grad_norm: float
    """L2 norm before clipping."""
    seconds: float


def run(job: Job, start: Progressed, stop: StopRequest, trackers: Sequence[Tracker]) -> Progressed:
    """Trains from where `start` says to the last step.

    Args:
        job: What to train, on what.
        start: Steps already done.
        stop: Looked at after every step.
        trackers: Told the metrics.

    Returns:
        Where training ended.

    Raises:
        Preempted: A signal came; a checkpoint of the step just done was written.
        StageError: The loss or a gradient is not finite.
    """
    progress, window = start, list[StepResult]()
    config = job.step.train
    job.network.train()
    with Progress("train", total=job.total_steps, unit="steps") as bar:
        bar.advance(start.step)
        for index in range(start.step, job.total_steps):
            result = optimiser_step(job, index)
            window.append(result)
            progress = _advance(progress, result)
            done = progress.step == job.total_steps
            bar.advance(note=f"loss {result.loss:.4f}")
            if done or progress.step % config.log_steps == 0:
                _log(trackers, progress, _metrics(window, progress, job))
                window = []
            if config.eval_steps is not None and (done or progress.step % config.eval_steps == 0):
                _log(trackers, progress, held_out.measure(job))
            due = config.checkpoint_steps is not None and progress.step % config.checkpoint_steps == 0
            if stop.signal is not None or (due and not done):
                _save(job, progress)
            if stop.signal is not None:
                where = f"step {progress.step} of {job.total_steps}"
                raise Preempted(f"stopped by {stop.signal.name} after {where}; a checkpoint was written.")
    return progress


def optimiser_step(job: Job, index: int) -> StepResult:
    """Computes the gradients of one global batch and moves the weights.

    Args:
        job: What to train, on what.
        index: Number of the step, from 0.
    """
    began = time.perf_counter()
    step, config = job.step, job.step.train
    batch = gradients.global_batch(job, index)
    health.check_trained(batch.trained_tokens, step=index + 1, samples=batch.samples)
    torch.manual_seed(_step_seed(step.seed, index))
    loss, sums = gradients.accumulate(job, batch, index)
    limit = float("inf") if config.max_grad_norm is None else config.max_grad_norm
    grad_norm = float(torch.nn.utils.clip_grad_norm_(job.parameters.values(), limit))
    health.check_finite(grad_norm, "gradient norm", step=index + 1, samples=batch.samples)
    rate = optim.learning_rate(index, job.total_steps, config)
    optim.apply(job.optimisers, rate)
    if job.average is not None:
        ema.update(job.average, job.parameters, index)
    return StepResult(
        loss=loss,
        count=batch.totals.tokens if job.objective.unit == "tokens" else batch.totals.rows,
        sums=sums,
        tokens=batch.tokens,
        trained_tokens=batch.trained_tokens,
        learning_rate=rate,
        grad_norm=grad_norm,
        seconds=time.perf_counter() - began,
    )


def _step_seed(seed: int, index: int) -> int:
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0])


def _advance(progress: Progressed, result: StepResult) -> Progressed:
    return Progressed(
        step=progress.step + 1,
        tokens=progress.tokens + result.tokens,
        trained_tokens=progress.trained_tokens + result.trained_tokens,
        seconds=progress.seconds + result.seconds,
        first_loss=result.loss if progress.first_loss is None else progress.first_loss,
        last_loss=result.loss,
    )


def _metrics(window: Sequence[StepResult], progress: Progressed, job: Job) -> dict[str, float]:
    tokens_per_second = sum(result.tokens for result in window) / sum(result.seconds for result in window)
    sums: Sums = {}
    for result in window:
        sums = add_sums(sums, result.sums)
    return {
        "loss": sum(result.loss * result.count for result in window) / sum(result.count for result in window),
        **means(sums),
        "learning_rate": window[-1].learning_rate,
        "grad_norm": window[-1].grad_norm,
        "tokens_per_second": tokens_per_second,
        "seconds": progress.seconds,
        "tokens": progress.tokens,
        "trained_tokens": progress.trained_tokens,
        "eta_seconds": progress.seconds / progress.step * (job.total_steps - progress.step),
        "peak_memory_bytes": peak_memory_bytes(job.step.placement.device),
    }


def _log(trackers: Sequence[Tracker], progress: Progressed, values: Mapping[str, float]) -> None:
    for tracker in trackers:
        tracker.log(progress.step, values)


def _save(job: Job, progress: Progressed) -> None:
    def fill(staging: Path) -> None:
        job.save_weights(staging)
        checkpoint.save_state(staging, job.optimisers, job.parameters, job.average)

    checkpoint.write(
        job.checkpoints,
        progress,
        identity=job.identity,
        fill=fill,
        needed_bytes=checkpoint.state_bytes(job.optimisers, job.parameters, job.average),
        keep=job.step.train.keep_checkpoints,
    )
