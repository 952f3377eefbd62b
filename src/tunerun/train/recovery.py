"""What training does after a step whose loss or gradients are not finite: stop, pass over it, or go back."""

from __future__ import annotations

import sys
from dataclasses import replace

from tunerun.errors import StageError
from tunerun.train import checkpoint, health
from tunerun.train.checkpoint import Progressed
from tunerun.train.health import NotFinite
from tunerun.train.job import Job


def recover(job: Job, progress: Progressed, fault: NotFinite) -> Progressed:
    """Does what `train.on_nonfinite` asks for; no weight was moved by the step.

    `rollback` takes the weights and the optimiser's state of the newest checkpoint that was due, and goes on with the
    rows after the failed step: those since the checkpoint are passed over too (Chowdhery et al. 2022, "PaLM", section
    5.1). As both depend on step and checkpoint alone, a resumed training does the same.

    Args:
        job: What is trained.
        progress: Before the step.
        fault: What is not finite.

    Returns:
        Where training stands with the step passed over.

    Raises:
        NotFinite: Training is to stop.
        StageError: Too many steps in a row failed, or there is no checkpoint to go back to.
    """
    policy, failed = job.step.train.on_nonfinite, progress.step + 1
    if policy == "stop":
        raise fault
    skipped = (*progress.skipped_steps, failed)
    in_a_row = tuple(range(failed - health.MOST_SKIPPED, failed + 1))
    if skipped[-len(in_a_row) :] == in_a_row:
        raise StageError(
            f"{fault.told}; the {health.MOST_SKIPPED} steps before it failed too. Lower train.learning_rate, or look "
            "at these samples."
        ) from fault
    if policy == "rollback":
        found = checkpoint.newest(job.checkpoints, job.ranks, due=job.step.train)
        if found is None:
            raise StageError(
                f"{fault.told}; there is no checkpoint to go back to. Lower train.checkpoint_steps or "
                "train.learning_rate, or let such steps pass: train.on_nonfinite=skip."
            ) from fault
        job.reload(found)
        checkpoint.restore_state(found, job.engine, job.average)
        done = f"went back to the weights of {found.folder.name}"
    else:
        done = "the step was skipped"
    if job.ranks.is_first:
        print(f"warning: {fault.told}; {done}.", file=sys.stderr)
    return replace(progress, step=failed, skipped_steps=skipped)


def judge(progress: Progressed, value: float, *, higher_is_better: bool) -> Progressed:
    """Notes what `train.best_metric` came to after the step just done; NaN is never the best."""
    sign, best = -1.0 if higher_is_better else 1.0, progress.best_value
    if sign * value < (float("inf") if best is None else sign * best):
        return replace(progress, best_step=progress.step, best_value=value, evals_since_best=0)
    return replace(progress, evals_since_best=progress.evals_since_best + 1)
