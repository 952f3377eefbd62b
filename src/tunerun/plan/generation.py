"""What answers cost that are generated while training."""

from __future__ import annotations

import math

from tunerun.config.schema import EvalConfig, TrainConfig


def notes(train: TrainConfig, evaluation: EvalConfig, steps: int | None) -> list[str]:
    """Says how often the model is run to generate answers to held-out rows.

    Args:
        train: The section `train`.
        evaluation: The section `eval`.
        steps: Optimiser steps; None when they are not known yet.
    """
    if not train.generate_rows or train.eval_steps is None:
        return []
    longest, batches = evaluation.max_new_tokens, math.ceil(train.generate_rows / evaluation.batch_size)
    passes = batches * longest
    told = f"up to {train.generate_rows} answers of up to {longest} tokens are generated every {train.eval_steps} steps"
    told += f" while training waits: up to {passes:,} passes through the model, {batches} x {longest}"
    if steps is not None:
        measurements = math.ceil(steps / train.eval_steps)
        told += f", {measurements} times"
    return [f"{told} (train.generate_rows)"]
