"""What is learned: the loss of each objective, by the kind that the config names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from tunerun.config.schema import ObjectiveConfig
from tunerun.models.batch import MicroBatch
from tunerun.models.loss import token_loss


def _tokens(network: Any, batch: MicroBatch, objective: ObjectiveConfig) -> Tensor:
    return token_loss(network, batch, label_smoothing=objective.label_smoothing)


LOSSES: dict[str, Callable[[Any, MicroBatch, ObjectiveConfig], Tensor]] = {
    # Which tokens are trained is the data's business: an assistant's turns, or every token.
    "sft": _tokens,
    "pretrain": _tokens,
}
"""Loss summed over the trained tokens of a micro-batch; the loop divides by those of the whole global batch."""
