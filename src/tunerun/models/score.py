"""Mean loss of a model over rows of a token store, and the log-probability of each row's answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tunerun.formats.tokens import Array, TokenStore
from tunerun.models.batch import collate
from tunerun.models.loss import segment_log_probs, token_loss


@dataclass(frozen=True, slots=True)
class Score:
    """What a model makes of a text it did not write."""

    loss: float
    """Mean cross-entropy of a trained token, in nats."""
    rows: int
    """Rows measured."""
    trained_tokens: int
    """Tokens the mean is taken over."""

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


@torch.inference_mode()
def score(
    network: Any,
    store: TokenStore,
    *,
    max_rows: int | None,
    batch_size: int,
    device: str,
    advance: Callable[[int], None] = lambda _: None,
) -> Score:
    """Measures the loss on the first rows of a store.

    Args:
        network: A causal transformers model that uses `segment_attention`.
        store: Token store.
        max_rows: Rows to measure; None takes all.
        batch_size: Rows computed at a time.
        device: Where the network is.
        advance: Told the number of rows after each batch.

    Returns:
        The score; its loss is NaN when no row has a trained token.
    """
    rows = len(store) if max_rows is None else min(max_rows, len(store))
    was_training = network.training
    network.eval()
    total, trained_tokens = 0.0, 0
    for start in range(0, rows, batch_size):
        numbers = range(start, min(start + batch_size, rows))
        batch = collate(store, numbers, device)
        if batch.trained_tokens:
            total += float(token_loss(network, batch))
            trained_tokens += batch.trained_tokens
        advance(len(numbers))
    network.train(was_training)
    return Score(total / trained_tokens if trained_tokens else math.nan, rows, trained_tokens)


@dataclass(frozen=True, slots=True)
class Answers:
    """How likely a model finds the answers of some rows."""

    log_probs: Array
    """Log-probability of each row's trained tokens, in nats, shape [rows]."""
    tokens: Array
    """Number of each row's trained tokens, shape [rows]."""

    @property
    def per_token(self) -> Array:
        """Mean log-probability of a token of each row, in nats, shape [rows]."""
        return self.log_probs / np.maximum(self.tokens, 1)

    def score(self) -> Score:
        """Returns the mean loss of a token; NaN when there is none."""
        count = int(self.tokens.sum())
        return Score(-float(self.log_probs.sum()) / count if count else math.nan, len(self.tokens), count)


@torch.inference_mode()
def answers(
    network: Any,
    store: TokenStore,
    rows: Sequence[int],
    *,
    batch_size: int,
    device: str,
    advance: Callable[[int], None] = lambda _: None,
) -> Answers:
    """Measures the answers of rows of which each is one sample.

    Args:
        network: A causal transformers model that uses `segment_attention`.
        store: Token store.
        rows: Row numbers.
        batch_size: Rows computed at a time.
        device: Where the network is.
        advance: Told the number of rows after each batch.
    """
    was_training = network.training
    network.eval()
    log_probs, tokens = [np.zeros(0)], [np.zeros(0, np.int64)]
    for start in range(0, len(rows), batch_size):
        batch = collate(store, rows[start : start + batch_size], device)
        log_probs.append(segment_log_probs(network, batch).double().cpu().numpy())
        counts = batch.target_segments.bincount(minlength=len(batch.segment_lengths))
        tokens.append(counts.cpu().numpy())
        advance(len(batch.segment_lengths))
    network.train(was_training)
    return Answers(np.concatenate(log_probs), np.concatenate(tokens))
