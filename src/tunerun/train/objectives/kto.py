"""Kahneman-Tversky optimisation: answers that are desirable or not, without pairs.

Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", equation 8: with
h(y) = log p(y|x) - log p_ref(y|x) and z = max(0, an estimate of KL(p || p_ref)), the loss of a row is
w_d (1 - s(beta (h - z))) when it is desirable and w_u (1 - s(beta (z - h))) when it is not.

z is the mean of h over mismatched rows, a prompt with the answer of another row, taken over the whole global batch and
not differentiated. The other row is the one before in the same batch of the first epoch (TRL 1.16 rotates its batches
in the same way); it stays the same for all epochs, so that its reference is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunerun.formats.tokens import Array, TokenStore
from tunerun.models.batch import MicroBatch, Row, lay_out
from tunerun.models.batch import collate as collate_rows
from tunerun.models.loss import segment_log_probs
from tunerun.train.objectives.objective import Batch, Examples, Outcome, Setting, Sums, Totals, summed

MATCHED, MISMATCHED = "answers", "mismatched"


def partners(order: Sequence[int], batch_size: int) -> Array:
    """Returns for each row the one whose answer is put after its prompt.

    Args:
        order: Of the rows in the first epoch.
        batch_size: Rows of a global batch; the one before is taken within it, in a circle.

    Returns:
        Shape [rows], int64; never the row itself, unless there is only one.
    """
    found = np.empty(len(order), np.int64)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        # A batch of one has no other row; index -1 of the first row is the last one.
        before = [*batch[-1:], *batch[:-1]] if len(batch) > 1 else [order[start - 1]]
        found[list(batch)] = before
    return found


def collate(examples: Examples, rows: Sequence[int], device: str) -> Batch:
    """Lays rows end to end, with their labels and reference log-probabilities."""
    store = examples.store
    assert isinstance(store, TokenStore) and store.labels is not None, "the data stage writes labels for this objective"
    laid = collate_rows(store, rows, device)
    return Batch(
        laid=laid,
        rows=len(rows),
        tokens=laid.trained_tokens,
        labels=torch.from_numpy(store.labels[list(rows)].astype(bool)).to(device),
        reference=examples.reference[MATCHED][torch.tensor(rows)].to(device) if examples.reference else None,
    )


def reference(network: Any, examples: Examples, rows: Sequence[int], device: str) -> dict[str, Tensor]:
    """Computes the log-probabilities of some rows and of their mismatched ones, each of shape (rows,)."""
    return {
        MATCHED: segment_log_probs(network, collate(examples, rows, device).laid),
        MISMATCHED: segment_log_probs(network, _mismatched(examples, rows, device)),
    }


def kl(network: Any, examples: Examples, rows: Sequence[int], device: str) -> Tensor:
    """Returns h of the mismatched rows, shape (rows,); their mean over the global batch estimates the KL."""
    found = segment_log_probs(network, _mismatched(examples, rows, device))
    return found - examples.reference[MISMATCHED][torch.tensor(rows)].to(device)


def loss(network: Any, batch: Batch, totals: Totals, setting: Setting) -> Outcome:
    """Returns the mean loss over the rows of the global batch."""
    assert batch.reference is not None and batch.labels is not None, "collated with labels and reference"
    config, wanted = setting.config, batch.labels
    log_probs = segment_log_probs(network, batch.laid)
    ratios = log_probs - batch.reference
    signs = torch.where(wanted, 1.0, -1.0)
    weights = torch.where(wanted, config.desirable_weight, config.undesirable_weight)
    losses = weights * (1 - torch.sigmoid(config.beta * signs * (ratios - totals.kl)))
    return Outcome(loss=losses.sum() / totals.rows, sums=_metrics(config.beta * ratios, log_probs, batch, totals))


def _metrics(rewards: Tensor, log_probs: Tensor, batch: Batch, totals: Totals) -> Sums:
    assert batch.labels is not None
    chosen, rejected = batch.labels, ~batch.labels
    return {
        **summed(
            rewards__chosen=rewards[chosen],
            rewards__rejected=rewards[rejected],
            logps__chosen=log_probs[chosen],
            logps__rejected=log_probs[rejected],
        ),
        "kl": (torch.tensor(totals.kl * batch.rows), batch.rows),
    }


def _mismatched(examples: Examples, rows: Sequence[int], device: str) -> MicroBatch:
    store, others = examples.store, examples.partners
    assert isinstance(store, TokenStore) and others is not None
    return lay_out([_joined(store.row(row), store.row(int(others[row]))) for row in rows], device)


def _joined(row: Row, other: Row) -> Row:
    """Puts the answer of another row after the prompt of one; the answer starts with the first trained token."""
    prompt, answer = int(np.argmax(row[1])), int(np.argmax(other[1]))
    tokens = np.concatenate([row[0][:prompt], other[0][answer:]])
    trained = np.concatenate([row[1][:prompt], other[1][answer:]])
    return tokens, trained, np.full(len(tokens), row[2][0])
