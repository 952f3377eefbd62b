"""Odds-ratio preference optimisation: imitation of the chosen answer, and odds that prefer it.

Hong et al. 2024, "ORPO: Monolithic Preference Optimization without Reference Model", equations 3 to 7:
the cross-entropy of the chosen answer minus beta log s(log odds(chosen) - log odds(rejected)), where
odds(y) = p / (1 - p), and log p is the mean log-probability of a token of the answer. The cross-entropy is the mean
over the trained tokens of the global batch, the second part the mean over its pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tunerun.models.loss import segment_log_probs
from tunerun.train.objectives import pairs
from tunerun.train.objectives.objective import Batch, Outcome, Setting, Totals, summed


def loss(network: Any, batch: Batch, totals: Totals, setting: Setting) -> Outcome:
    """Returns the loss of the chosen answers and their odds."""
    beta = setting.config.beta
    chosen_sum, rejected_sum = segment_log_probs(network, batch.laid).chunk(2)
    chosen_tokens, rejected_tokens = pairs.answer_tokens(batch)
    chosen, rejected = chosen_sum / chosen_tokens, rejected_sum / rejected_tokens
    log_odds = chosen - rejected - (_log_of_rest(chosen) - _log_of_rest(rejected))
    ratio = logsigmoid(log_odds)
    whole = -chosen_sum.sum() / totals.tokens - beta * ratio.sum() / totals.rows
    extra = {
        **summed(log_odds_chosen=log_odds, log_odds_ratio=ratio),
        "nll_loss": (-chosen_sum.detach().sum(), max(batch.tokens, 1)),
    }
    sums = pairs.metrics((beta * chosen, beta * rejected), (chosen, rejected))
    return Outcome(loss=whole, sums={**sums, **extra})


def _log_of_rest(log_prob: Tensor) -> Tensor:
    """Returns log(1 - p) of log p < 0 without loss of digits.

    Maechler 2012, "Accurately Computing log(1 - exp(-|a|))".
    """
    # Both branches are computed: keep what one of them cannot take out of its gradient.
    small = log_prob > -0.693
    near = torch.log(-torch.expm1(torch.where(small, log_prob, -1.0)))
    far = torch.log1p(-torch.exp(torch.where(small, -1.0, log_prob)))
    return torch.where(small, near, far)
