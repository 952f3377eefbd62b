"""sft and pretrain: the cross-entropy of next tokens.

Which tokens are trained is the data's business: an assistant's turns, or every token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunerun.formats.tokens import TokenStore
from tunerun.models.batch import collate as collate_rows
from tunerun.models.loss import token_loss
from tunerun.train.objectives.objective import Batch, Examples, Outcome, Setting, Totals


def collate(examples: Examples, rows: Sequence[int], device: str) -> Batch:
    """Lays rows end to end, packed or not."""
    assert isinstance(examples.store, TokenStore), "the data stage writes single rows for this objective"
    laid = collate_rows(examples.store, rows, device)
    return Batch(laid=laid, rows=len(rows), tokens=laid.trained_tokens)


def loss(network: Any, batch: Batch, totals: Totals, setting: Setting) -> Outcome:
    """Returns the mean cross-entropy over the trained tokens of the global batch."""
    summed = token_loss(network, batch.laid, label_smoothing=setting.config.label_smoothing)
    return Outcome(loss=summed / totals.tokens)
