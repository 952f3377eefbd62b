"""A reward model: a score for an answer, learned from pairs.

Bradley & Terry 1952; Ouyang et al. 2022, "Training language models to follow instructions", equation 1:
-log s(r(chosen) - r(rejected)), where r is what a linear layer without bias makes of the last token's state. That is
the classifier of transformers with one label, which reads the last token of a row too.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import logsigmoid

from tunerun.models.batch import MicroBatch
from tunerun.models.loss import last_hidden
from tunerun.train.objectives import pairs
from tunerun.train.objectives.objective import Batch, Outcome, Setting, Totals


def loss(network: Any, batch: Batch, totals: Totals, _: Setting) -> Outcome:
    """Returns the mean loss over the pairs of the global batch."""
    chosen, rejected = scores(network, batch.laid).chunk(2)
    losses = -logsigmoid(chosen - rejected)
    return Outcome(loss=losses.sum() / totals.rows, sums=pairs.metrics((chosen, rejected)))


def scores(network: Any, batch: MicroBatch) -> Tensor:
    """Returns the score of each segment, shape (segments,), float32.

    Args:
        network: A sequence classifier of transformers with one label that uses `segment_attention`.
        batch: Rows laid end to end.
    """
    last = batch.segment_bounds[1 : len(batch.segment_lengths) + 1] - 1
    found: Tensor = network.score(last_hidden(network, batch)[last])[:, 0]
    return found.float()
