"""The training loop.

The gradient of a step is that of the mean loss over all trained tokens of the global batch, however it is cut into
micro-batches: each one's summed loss is divided by the same count before it is differentiated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import Parameter

from tunerun.errors import Preempted
from tunerun.formats.tokens import TokenStore
from tunerun.models.batch import MicroBatch, collate
from tunerun.models.score import score
from tunerun.plan.steps import TrainStep
from tunerun.progress import Progress
from tunerun.train import batches, checkpoint, ema, health, optim
from tunerun.train.checkpoint import Progressed
from tunerun.train.metrics import Tracker, peak_memory_bytes
from tunerun.train.objectives import LOSSES
from tunerun.train.signals import StopRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """All that stays the same while training."""

    step: TrainStep
    network: Any
    """The transformers model, adapter layers included."""
    parameters: Mapping[str, Parameter]
    """Trainable parameters by name."""
    optimisers: Sequence[torch.optim.Optimizer]
    average: ema.Average | None
    """Of the parameters, when it is published in their place."""
    store: TokenStore
    eval_store: TokenStore | None
    """Held-out rows, when they are measured while training."""
    total_steps: int
    checkpoints: Path
    """Folder of the run's checkpoints."""
    identity: Mapping[str, Any]
    """What checkpoints belong to."""
    save_weights: Callable[[Path], None]
    """Writes the trained weights into a folder."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What an optimiser step did."""

    loss: float
    """Mean over the trained tokens of the global batch, before the step."""
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
                _evaluate(job, progress.step, trackers)
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
    micro_batches = micro_batches_of_step(job, index)
    trained_tokens = sum(batch.trained_tokens for batch in micro_batches)
    samples = [sample for batch in micro_batches for sample in batch.samples]
    health.check_trained(trained_tokens, step=index + 1, samples=samples)
    torch.manual_seed(_step_seed(step.seed, index))
    loss = accumulate_gradients(job, micro_batches, index)
    limit = float("inf") if config.max_grad_norm is None else config.max_grad_norm
    grad_norm = float(torch.nn.utils.clip_grad_norm_(job.parameters.values(), limit))
    health.check_finite(grad_norm, "gradient norm", step=index + 1, samples=samples)
    rate = optim.learning_rate(index, job.total_steps, config)
    optim.apply(job.optimisers, rate)
    if job.average is not None:
        ema.update(job.average, job.parameters, index)
    return StepResult(
        loss=loss,
        tokens=sum(batch.tokens for batch in micro_batches),
        trained_tokens=trained_tokens,
        learning_rate=rate,
        grad_norm=grad_norm,
        seconds=time.perf_counter() - began,
    )


def micro_batches_of_step(job: Job, index: int) -> list[MicroBatch]:
    """Returns the micro-batches of an optimiser step that have something to learn, or all when none has."""
    rows = batches.rows_of_step(
        index, rows=len(job.store), global_batch_size=job.step.train.global_batch_size, seed=job.step.seed
    )
    device = job.step.placement.device
    made = [collate(job.store, part, device) for part in batches.split(rows, job.step.micro_batch_size)]
    return [batch for batch in made if batch.trained_tokens] or made


def accumulate_gradients(job: Job, micro_batches: Sequence[MicroBatch], index: int) -> float:
    """Adds the gradients of a global batch's mean loss to the parameters.

    Returns:
        The mean loss.
    """
    placement = job.step.placement
    loss_of = LOSSES[job.step.objective.kind]
    trained_tokens = sum(batch.trained_tokens for batch in micro_batches)
    mean = 0.0
    for batch in micro_batches:
        with torch.autocast(placement.device, torch.bfloat16, enabled=placement.precision == "bf16"):
            loss = loss_of(job.network, batch, job.step.objective) / trained_tokens
        value = float(loss.detach())
        health.check_finite(value, "loss", step=index + 1, samples=batch.samples)
        loss.backward()  # type: ignore[no-untyped-call]
        mean += value
    return mean


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
    trained_tokens = sum(result.trained_tokens for result in window)
    tokens_per_second = sum(result.tokens for result in window) / sum(result.seconds for result in window)
    return {
        "loss": sum(result.loss * result.trained_tokens for result in window) / trained_tokens,
        "learning_rate": window[-1].learning_rate,
        "grad_norm": window[-1].grad_norm,
        "tokens_per_second": tokens_per_second,
        "seconds": progress.seconds,
        "tokens": progress.tokens,
        "trained_tokens": progress.trained_tokens,
        "eta_seconds": progress.seconds / progress.step * (job.total_steps - progress.step),
        "peak_memory_bytes": peak_memory_bytes(job.step.placement.device),
    }


def _evaluate(job: Job, step: int, trackers: Sequence[Tracker]) -> None:
    assert job.eval_store is not None, "train.eval_steps needs held-out rows"
    config, placement = job.step.eval, job.step.placement
    with torch.autocast(placement.device, torch.bfloat16, enabled=placement.precision == "bf16"), _published(job):
        measured = score(
            job.network,
            job.eval_store,
            max_rows=config.max_rows,
            batch_size=config.batch_size,
            device=placement.device,
        )
    for tracker in trackers:
        tracker.log(step, {"eval_loss": measured.loss})


def _published(job: Job) -> AbstractContextManager[None]:
    """Lets the network have the weights that would be published."""
    return ema.applied(job.average, job.parameters)


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
