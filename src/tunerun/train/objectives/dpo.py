"""Direct preference optimisation, with the losses sigmoid, hinge and ipo.

With h(y) = log p(y|x) - log p_ref(y|x), and the difference d = h(chosen) - h(rejected):

- sigmoid: -log s(beta d); with label smoothing e, -(1 - e) log s(beta d) - e log s(-beta d). Rafailov et al. 2023,
  "Direct Preference Optimization", equation 7; the smoothing is Mitchell's 2023 note on conservative DPO.
- hinge: max(0, 1 - beta d). Zhao et al. 2023, "SLiC-HF"; Liu et al. 2023, "Statistical Rejection Sampling".
- ipo: (h(chosen) / its tokens - h(rejected) / its tokens - 1 / (2 beta))^2. Azar et al. 2023, "A General Theoretical
  Paradigm", equation 17; the mean over tokens is what its authors used.

s is the logistic function. The reference is the model as it was before the first step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tunerun.config.schema import ObjectiveConfig
from tunerun.models.loss import segment_log_probs
from tunerun.train.objectives import pairs
from tunerun.train.objectives.objective import Batch, Outcome, Setting, Totals


def loss(network: Any, batch: Batch, totals: Totals, setting: Setting) -> Outcome:
    """Returns the mean loss over the pairs of the global batch."""
    assert batch.reference is not None, "collated with reference"
    config = setting.config
    log_probs = segment_log_probs(network, batch.laid)
    chosen, rejected = (log_probs - batch.reference).chunk(2)
    if config.loss == "ipo":
        chosen_tokens, rejected_tokens = pairs.answer_tokens(batch)
        losses = (chosen / chosen_tokens - rejected / rejected_tokens - 1 / (2 * config.beta)) ** 2
    else:
        losses = pair_losses(config.beta * (chosen - rejected), config)
    chosen_log_probs, rejected_log_probs = log_probs.chunk(2)
    sums = pairs.metrics((config.beta * chosen, config.beta * rejected), (chosen_log_probs, rejected_log_probs))
    return Outcome(loss=losses.sum() / totals.rows, sums=sums)


def pair_losses(scores: Tensor, config: ObjectiveConfig) -> Tensor:
    """Returns the sigmoid or hinge loss of scores, beta d for each pair."""
    if config.loss == "hinge":
        return torch.relu(1 - scores)
    smoothing = config.label_smoothing
    return -(1 - smoothing) * logsigmoid(scores) - smoothing * logsigmoid(-scores)
