"""Simple preference optimisation: DPO's form with the mean log-probability of a token, without a reference.

Meng et al. 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward", equation 6:
-log s(beta (m(chosen) - m(rejected)) - gamma), where m is the mean log-probability of a token of the answer.
"""

from __future__ import annotations

from typing import Any

from torch.nn.functional import logsigmoid

from tunerun.models.loss import segment_log_probs
from tunerun.train.objectives import pairs
from tunerun.train.objectives.objective import Batch, Outcome, Setting, Totals


def loss(network: Any, batch: Batch, totals: Totals, setting: Setting) -> Outcome:
    """Returns the mean loss over the pairs of the global batch."""
    config = setting.config
    chosen_sum, rejected_sum = segment_log_probs(network, batch.laid).chunk(2)
    chosen_tokens, rejected_tokens = pairs.answer_tokens(batch)
    chosen, rejected = chosen_sum / chosen_tokens, rejected_sum / rejected_tokens
    losses = -logsigmoid(config.beta * (chosen - rejected) - config.gamma)
    sums = pairs.metrics((config.beta * chosen, config.beta * rejected), (chosen, rejected))
    return Outcome(loss=losses.sum() / totals.rows, sums=sums)
