"""Cross-entropy of next tokens, computed only where a token is learned and in pieces of bounded size."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunerun.models.batch import MicroBatch

# Config keys of models that change the logits after the output layer; their own forward must compute them.
_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")

# Logits held at a time, in float32: large enough for efficient products, small beside any model.
_LOGITS_BYTES = 64 << 20


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
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "segment_lengths": batch.segment_lengths,
        "use_cache": False,
    }
    head = network.get_output_embeddings()
    if not _is_plain(head, network.config):
        logits = network(**inputs, logits_to_keep=batch.predicting).logits[0]
        return F.cross_entropy(logits.float(), batch.targets, reduction="sum", label_smoothing=label_smoothing)
    hidden = network.get_decoder()(**inputs).last_hidden_state[0, batch.predicting]
    loss: Tensor = _LinearCrossEntropy.apply(hidden, head.weight, batch.targets, label_smoothing)  # type: ignore[no-untyped-call]
    return loss


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
        weight_grad = torch.zeros_like(weight) if wants_weight else None
        loss = torch.zeros((), device=hidden.device)
        piece = max(1, _LOGITS_BYTES // (4 * weight.shape[0]))
        for start in range(0, len(targets), piece):
            rows = slice(start, start + piece)
            logits = F.linear(inputs[rows], matrix).float()
            wanted = targets[rows, None]
            total = logits.logsumexp(1, keepdim=True)
            loss += (total - (1.0 - smoothing) * logits.gather(1, wanted)).sum()
            if smoothing:
                loss -= smoothing * logits.mean(1).sum()
            if not (wants_hidden or wants_weight):
                continue
            grad = logits.sub_(total).exp_()
            grad.scatter_add_(1, wanted, grad.new_full(wanted.shape, smoothing - 1.0))
            if smoothing:
                grad -= smoothing / weight.shape[0]
            grad = grad.to(dtype)
            if hidden_grad is not None:
                hidden_grad[rows] = grad @ matrix
            if weight_grad is not None:
                weight_grad += grad.T @ inputs[rows]
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
