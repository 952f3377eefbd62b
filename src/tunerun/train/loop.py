"""The training loop: optimiser steps, and what is written between them."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tunerun import artifacts
from tunerun.child import RankReport
from tunerun.config.schema import TrainConfig
from tunerun.errors import Preempted, Pruned
from tunerun.plan.steps import TrainStep
from tunerun.progress import Progress, goes_on
from tunerun.train import checkpoint, ema, fitting, gradients, health, held_out, metrics, optim, readings, recovery
from tunerun.train.answers import scores, to_prompts
from tunerun.train.checkpoint import Progressed
from tunerun.train.gradients import GlobalBatch
from tunerun.train.job import Job
from tunerun.train.objectives.objective import Sums, add_sums, means
from tunerun.train.signals import StopRequest
from tunerun.train.trackers import Tracker


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
    samples: tuple[int, ...]
    """Sample numbers."""


def run(job: Job, start: Progressed, stop: StopRequest, trackers: Sequence[Tracker]) -> Progressed:
    """Trains from where `start` says to the last step, or until the held-out rows are no longer measured as better.

    Args:
        job: What to train, on what.
        start: Steps already done.
        stop: Looked at after every step.
        trackers: Told the metrics.

    Returns:
        Where training ended.

    Raises:
        Preempted: A signal came; a checkpoint of the step just done was written.
        Pruned: The sweep that this is a trial of sees no use in going on.
        StageError: The loss or a gradient is not finite and may not be, or a checkpoint could not be written.
        OutOfMemory: A step does not fit into memory; one process has written a checkpoint of those before it.
    """
    progress, window = start, list[StepResult]()
    losses = deque[float](maxlen=health.SPIKE_WINDOW)
    config, report = job.step.train, RankReport()
    if _is_out_of_patience(start, config):
        # The signal that stopped training came in its last step.
        return start
    job.network.train()
    with Progress("train", total=job.total_steps, unit="steps") as bar:
        bar.advance(start.step)
        try:
            for result, settled in _steps(job, range(start.step, job.total_steps), stop, report):
                if isinstance(result, health.NotFinite):
                    progress = recovery.recover(job, progress, result)
                    bar.advance()
                else:
                    window.append(result)
                    progress = _advance(progress, result)
                    _warn_of_spike(job, progress.step, result, losses)
                    bar.advance(note=f"loss {result.loss:.4f}")
                done = progress.step == job.total_steps
                if window and (done or progress.step % config.log_steps == 0):
                    _log(trackers, progress, _metrics(window, progress, job))
                    window = []
                if config.eval_steps is not None and (done or progress.step % config.eval_steps == 0):
                    progress = _measure(job, progress, trackers)
                ended = done or _is_out_of_patience(progress, config)
                if not settled:
                    continue
                asked = agreed_signal(job, stop)
                if asked is not None or (not ended and checkpoint.is_due(progress, config)):
                    _save(job, progress, answers=asked is None)
                if asked is not None:
                    where = f"step {progress.step} of {job.total_steps}"
                    raise Preempted(f"stopped by {asked.name} after {where}; a checkpoint was written.")
                if ended:
                    break
        except fitting.OutOfMemory:
            # Writing takes all ranks, and the others are in the middle of the step.
            if progress.step and job.ranks.world == 1 and not checkpoint.is_there(job.checkpoints, progress.step):
                _save(job, progress, answers=False)
            raise
    return progress


def _steps(
    job: Job, indices: range, stop: StopRequest, report: RankReport
) -> Iterator[tuple[StepResult | health.NotFinite, bool]]:
    """Does the steps, and yields what each did and whether the weights are those after it.

    On a GPU, the host asks for the next step before it looks at the numbers of the last one, so that the device never
    waits; weights with a checkpoint, an evaluation or a stop after them are waited for.
    """
    if not job.reads_late:
        for index in indices:
            report.step(index)
            yield _or_fault(partial(optimiser_step, job, index)), True
        return
    before, began = None, time.perf_counter()
    for index in indices:
        report.step(index)
        try:
            started = start_step(job, index)
        except fitting.OutOfMemory:
            if before is not None:
                yield _or_fault(partial(finish_step, job, before, began)), True
            raise
        if before is not None:
            yield _or_fault(partial(finish_step, job, before, began)), False
            began = time.perf_counter()
        before = started
        if stop.signal is not None or _pauses_after(index + 1, job):
            yield _or_fault(partial(finish_step, job, before, began)), True
            before, began = None, time.perf_counter()


def _or_fault(work: Callable[[], StepResult]) -> StepResult | health.NotFinite:
    try:
        return work()
    except health.NotFinite as fault:
        return fault


def _pauses_after(step: int, job: Job) -> bool:
    """Says whether something is done with the weights after a step, counted from 1."""
    periods = (job.step.train.checkpoint_steps, job.step.train.eval_steps)
    return step == job.total_steps or any(period is not None and step % period == 0 for period in periods)


def optimiser_step(job: Job, index: int) -> StepResult:
    """Computes the gradients of one global batch and moves the weights.

    Args:
        job: What to train, on what.
        index: Number of the step, from 0.

    Raises:
        NotFinite: The loss or a gradient is not finite; no weight was moved.
        StageError: There is nothing to learn.
    """
    began = time.perf_counter()
    return finish_step(job, start_step(job, index), began)


@dataclass(frozen=True, kw_only=True, slots=True)
class StartedStep:
    """An optimiser step that the device may still be at."""

    index: int
    """From 0."""
    batch: GlobalBatch
    learning_rate: float
    counts: Mapping[str, int]
    """What the sums of the objective's metrics are over."""
    numbers: Callable[[], list[float]]
    """Waits for the loss of each micro-batch of this rank, the gradient norm and the sums of the metrics."""


def start_step(job: Job, index: int) -> StartedStep:
    """Computes the gradients of a global batch and moves the weights, unless one is not finite."""
    job.fitting.begin(index + 1)
    batch, losses, sums = job.fitting.gradients(lambda: _gradients(job, index))
    rate = optim.learning_rate(index, job.total_steps, job.step.train)
    norm = job.engine.move(rate)
    wanted = [*losses, norm, *(value for value, _ in sums.values())]
    return StartedStep(
        index=index,
        batch=batch,
        learning_rate=rate,
        counts={name: count for name, (_, count) in sums.items()},
        numbers=readings.read(wanted, job.step.placement.device),
    )


def finish_step(job: Job, started: StartedStep, began: float) -> StepResult:
    """Looks at the numbers of a step.

    Args:
        job: What to train, on what.
        started: The step.
        began: When its time began, as `time.perf_counter` counts.

    Raises:
        NotFinite: The loss or a gradient is not finite; no weight was moved.
    """
    index, batch, numbers = started.index, started.batch, started.numbers()
    parts = len(batch.parts)
    grad_norm, totals = numbers[parts], numbers[parts + 1 :]
    loss = gradients.check_losses(job, batch, numbers[:parts], index)
    if not math.isfinite(grad_norm):
        samples = [sample for found in job.ranks.objects(batch.samples) for sample in found]
        raise health.NotFinite(grad_norm, "gradient norm", step=index + 1, samples=samples)
    if job.average is not None:
        ema.update(job.average, job.parameters, index)
    return StepResult(
        loss=loss,
        count=batch.totals.tokens if job.objective.unit == "tokens" else batch.totals.rows,
        sums={name: (total, count) for (name, count), total in zip(started.counts.items(), totals, strict=True)},
        tokens=batch.tokens,
        trained_tokens=batch.trained_tokens,
        learning_rate=started.learning_rate,
        grad_norm=grad_norm,
        seconds=time.perf_counter() - began,
        samples=tuple(batch.samples),
    )


def _gradients(job: Job, index: int) -> tuple[GlobalBatch, list[Tensor], Sums]:
    """Computes the gradients of a global batch; the same ones each time."""
    batch = gradients.global_batch(job, index)
    health.check_trained(batch.trained_tokens, step=index + 1, samples=batch.samples)
    torch.manual_seed(_step_seed(job.step.seed, index, job.ranks.rank))
    return batch, *gradients.accumulate(job, batch)


def agreed_signal(job: Job, stop: StopRequest) -> signal.Signals | None:
    """Returns the signal that a rank was asked to stop by before all of them came here; the same on every rank."""
    asked = max(value for (value,) in job.ranks.numbers([stop.signal or 0]))
    return signal.Signals(int(asked)) if asked else None


def _measure(job: Job, progress: Progressed, trackers: Sequence[Tracker]) -> Progressed:
    """Measures the held-out rows, and goes on if that is worth it.

    Raises:
        Pruned: The sweep that this is a trial of sees no use in it.
    """
    measured = {**held_out.measure(job), **scores(job)}
    _log(trackers, progress, measured)
    loss = measured["eval_loss"]
    if progress.step < job.total_steps and not _is_worth_it(job, progress.step, loss):
        raise Pruned(f"ended at step {progress.step} with held-out loss {loss:.4f}.")
    metric = job.step.train.best_metric
    return recovery.judge(progress, measured[f"eval_{metric}"], higher_is_better=metric != "loss")


def _is_worth_it(job: Job, step: int, loss: float) -> bool:
    """Asks the sweep that this is a trial of, if it is one; the answer is the same on every rank."""
    answer = not job.ranks.is_first or goes_on(step, loss)
    return all(value for (value,) in job.ranks.numbers([answer]))


def _step_seed(seed: int, index: int, rank: int) -> int:
    """Returns what dropout and noise are drawn from; ranks have rows of their own, and draw of their own."""
    entropy = [seed, index] if rank == 0 else [seed, index, rank]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def _advance(progress: Progressed, result: StepResult) -> Progressed:
    return replace(
        progress,
        step=progress.step + 1,
        tokens=progress.tokens + result.tokens,
        trained_tokens=progress.trained_tokens + result.trained_tokens,
        seconds=progress.seconds + result.seconds,
        first_loss=result.loss if progress.first_loss is None else progress.first_loss,
        last_loss=result.loss,
    )


def _is_out_of_patience(progress: Progressed, config: TrainConfig) -> bool:
    patience = config.early_stopping_evals
    return patience is not None and progress.evals_since_best >= patience


def _warn_of_spike(job: Job, step: int, result: StepResult, losses: deque[float]) -> None:
    if health.is_spike(result.loss, losses):
        mean = sum(losses) / len(losses)
        told = (
            f"the loss is {result.loss:.4g}, {result.loss / mean:.1f} times the mean of the {len(losses)} steps before"
        )
        samples = [sample for found in job.ranks.objects(result.samples) for sample in found]
        print(f"warning: step {step}: {told}; it was computed from {health.names(samples)}.", file=sys.stderr)
    losses.append(result.loss)


def _metrics(window: Sequence[StepResult], progress: Progressed, job: Job) -> dict[str, float]:
    tokens_per_second = sum(result.tokens for result in window) / sum(result.seconds for result in window)
    sums: Sums = {}
    for result in window:
        sums = add_sums(sums, result.sums)
    sums = gradients.all_sums(job, sums)
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
        **_utilisation(job.step, tokens_per_second),
        **metrics.device_metrics(job.step.placement.device),
    }


def _utilisation(step: TrainStep, tokens_per_second: float) -> dict[str, float]:
    if step.flops_per_token is None or step.device_flops is None:
        return {}
    peak = step.device_flops * step.placement.world_size
    return {"mfu": metrics.model_flops_utilisation(tokens_per_second, step.flops_per_token, peak)}


def _log(trackers: Sequence[Tracker], progress: Progressed, values: Mapping[str, float]) -> None:
    for tracker in trackers:
        tracker.log(progress.step, values)


def _save(job: Job, progress: Progressed, *, answers: bool) -> None:
    # All that ranks do together comes before the first write, which may fail on one of them.
    with ema.applied(job.average, job.parameters):
        weights = job.engine.weights(trainable=job.trainable_only)
    moving = {} if job.average is None else job.engine.weights(trainable=True)
    state = job.engine.state()
    told = to_prompts(job, job.questions, progress.step) if answers and job.questions is not None else None

    def fill(staging: Path) -> None:
        if job.ranks.is_first:
            job.save_weights(staging, weights)
            if told is not None:
                artifacts.write_text(staging / checkpoint.ANSWERS, told)
        checkpoint.save_state(staging, state, moving, job.ranks)

    checkpoint.write(
        job.checkpoints,
        progress,
        identity=job.identity,
        fill=fill,
        needed_bytes=checkpoint.state_bytes(weights, state, moving),
        train=job.step.train,
        ranks=job.ranks,
    )
