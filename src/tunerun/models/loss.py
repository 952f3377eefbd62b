"""Cross-entropy and log-probabilities of next tokens.

Computed only where a token is learned and in pieces of bounded size, so that memory does not grow with the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tunerun.models.batch import MicroBatch
from tunerun.plan.placement import LOGITS_BYTES

# Config keys of models that change the logits after the output layer; their own forward must compute them.
_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")

# Of the logits held at a time, what a CPU turns into gradients at a time.
_CACHED_BYTES = 1 << 20
_ROWS_MULTIPLE = 64


def token_loss(network: Any, batch: MicroBatch, *, label_smoothing: float = 0.0) -> Tensor:
    """Returns the cross-entropy summed over the trained tokens of a micro-batch, in nats.

    Args:
        network: A causal transformers model that uses `segment_attention`.
        batch: Has at least one trained token.
        label_smoothing: Share of each target's probability that is spread evenly over the vocabulary (Szegedy et al.
            2016, "Rethinking the Inception Architecture", section 7).

    Returns:
        Scalar float32.
    """
    head = network.get_output_embeddings()
    if not _is_plain(head, network.config):
        logits = _whole_logits(network, batch)
        return F.cross_entropy(logits, batch.targets, reduction="sum", label_smoothing=label_smoothing)
    hidden = last_hidden(network, batch)[batch.predicting]
    loss: Tensor = _LinearCrossEntropy.apply(hidden, head.weight, batch.targets, label_smoothing)  # type: ignore[no-untyped-call]
    return loss


def segment_log_probs(network: Any, batch: MicroBatch) -> Tensor:
    """Returns the log-probability of the trained tokens of each segment, summed, in nats.

    Args:
        network: A causal transformers model that uses `segment_attention`.
        batch: Rows laid end to end.

    Returns:
        Shape (segments,), float32; 0 for a segment without trained tokens.
    """

    def picked(logits: Tensor, targets: Tensor) -> Tensor:
        return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)

    found = map_logits([network], batch, picked)
    sums = found.new_zeros(len(batch.segment_lengths))
    return sums.index_add(0, batch.target_segments, found)


def map_logits(networks: list[Any], batch: MicroBatch, function: Callable[..., Tensor]) -> Tensor:
    """Applies a function to the logits of one or several models where a token is learned, piece by piece.

    Logits of more than one piece are computed again for the backward pass instead of being kept.

    Args:
        networks: Causal transformers models that use `segment_attention` and take the same tokens.
        batch: Rows laid end to end.
        function: Takes the logits of each model, (rows, its vocabulary) float32, and the targets, (rows,); returns
            one number for each row, or several.

    Returns:
        Shape (trained tokens,) or (trained tokens, numbers), float32.
    """
    heads = [network.get_output_embeddings() for network in networks]
    if not all(_is_plain(head, network.config) for head, network in zip(heads, networks, strict=True)):
        return function(*(_whole_logits(network, batch) for network in networks), batch.targets)
    hidden = [last_hidden(network, batch)[batch.predicting] for network in networks]

    def of_piece(targets: Tensor, *states: Tensor) -> Tensor:
        logits = (F.linear(state, head.weight).float() for state, head in zip(states, heads, strict=True))
        return function(*logits, targets)

    piece = max(1, LOGITS_BYTES[batch.targets.device.type] // (4 * sum(head.weight.shape[0] for head in heads)))
    if len(batch.targets) <= piece:
        return of_piece(batch.targets, *hidden)
    parts = zip(*(torch.split(values, piece) for values in (batch.targets, *hidden)), strict=True)
    found = [checkpoint(of_piece, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    return torch.cat(found)


def last_hidden(network: Any, batch: MicroBatch) -> Tensor:
    """Returns what the last layer makes of each token of a micro-batch, shape (tokens, width)."""
    states: Tensor = network.get_decoder()(**_inputs(batch)).last_hidden_state[0]
    return states[: batch.tokens]


def _inputs(batch: MicroBatch) -> dict[str, Any]:
    return {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "segment_lengths": (*batch.segment_lengths, *([batch.padding] if batch.padding else [])),
        "segment_bounds": batch.segment_bounds,
        "use_cache": False,
    }


def _whole_logits(network: Any, batch: MicroBatch) -> Tensor:
    logits: Tensor = network(**_inputs(batch), logits_to_keep=batch.predicting).logits[0]
    return logits.float()


def _is_plain(head: Any, config: Any) -> bool:
    values = config.to_dict()
    changes = any(key in values and values[key] not in (None, 1.0) for key in _LOGIT_CHANGES)
    kind: Any = type(head)
    return kind is torch.nn.Linear and head.bias is None and not changes


class _LinearCrossEntropy(torch.autograd.Function):
    """Output layer and cross-entropy in one, piece by piece.

    The gradient of the logits is softmax(logits) - (1 - smoothing) onehot(target) - smoothing / vocabulary, known as
    soon as the loss is: it is used at once for the gradients of the inputs, so that logits are neither kept nor
    computed twice.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """Computes the summed loss, and the gradients of hidden (rows, width) and weight (vocabulary, width)."""
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        inputs, matrix = hidden.to(dtype), weight.to(dtype)
        wants_hidden, wants_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        hidden_grad = torch.empty_like(hidden) if wants_hidden else None
        weight_grad: Tensor | None = None
        loss = torch.zeros((), device=hidden.device)
        piece = max(1, LOGITS_BYTES[device] // (4 * weight.shape[0]))
        for start in range(0, len(targets), piece):
            rows = slice(start, start + piece)
            wanted, states = targets[rows], _filled(inputs[rows])
            logits = F.linear(states, matrix)
            loss += _replace_by_gradient(logits, wanted, smoothing, learns=wants_hidden or wants_weight)
            if hidden_grad is not None:
                hidden_grad[rows] = (logits @ matrix)[: len(wanted)]
            if wants_weight:
                found = (logits.T @ states).to(weight.dtype)
                weight_grad = found if weight_grad is None else weight_grad.add_(found)
        ctx.save_for_backward(hidden_grad, weight_grad)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Scales the gradients that the forward pass computed."""
        hidden_grad, weight_grad = ctx.saved_tensors
        return (
            None if hidden_grad is None else hidden_grad * grads[0],
            None if weight_grad is None else weight_grad * grads[0],
            None,
            None,
        )


def _filled(states: Tensor) -> Tensor:
    """Adds rows of zeros in half precision on a CPU, whose products are compiled for each number of rows anew."""
    if states.device.type != "cpu" or states.dtype == torch.float32:
        return states
    return F.pad(states, (0, 0, 0, -len(states) % _ROWS_MULTIPLE))


def _replace_by_gradient(logits: Tensor, targets: Tensor, smoothing: float, *, learns: bool) -> Tensor:
    """Returns the summed loss of logits, which become its gradient if it is wanted; rows without a target become zeros.

    A CPU takes a few rows at a time, so that the passes over them in float32 stay in its cache.
    """
    loss = torch.zeros((), device=logits.device)
    vocabulary = logits.shape[1]
    step = max(1, _CACHED_BYTES // (4 * vocabulary)) if logits.device.type == "cpu" else len(targets)
    for start in range(0, len(targets), step):
        wanted = targets[start : start + step, None]
        part = logits[start : start + len(wanted)]
        values = part.float()
        told = (1.0 - smoothing) * values.gather(1, wanted).sum()
        if smoothing:
            told += smoothing * values.mean(1).sum()
        # In place, and the exponentials are used twice: once for the loss, once for its gradient.
        largest = values.amax(1, keepdim=True)
        total = values.sub_(largest).exp_().sum(1, keepdim=True)
        loss += (largest + total.log()).sum() - told
        if not learns:
            continue
        values.div_(total)
        values.scatter_add_(1, wanted, values.new_full(wanted.shape, smoothing - 1.0))
        if smoothing:
            values -= smoothing / vocabulary
        if values is not part:
            part.copy_(values)
    logits[len(targets) :] = 0
    return loss
