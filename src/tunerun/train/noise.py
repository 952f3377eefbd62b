"""NEFTune: uniform noise on the embeddings while training.

Jain et al. 2023, "NEFTune: Noisy Embeddings Improve Instruction Finetuning" (arXiv 2310.05914): each number of an
embedded sample gets uniform noise of at most alpha / sqrt(tokens x width), with the tokens of that sample.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def add_noise(network: Any, alpha: float) -> None:
    """Makes a model add noise to its embeddings whenever gradients are computed in training mode.

    The noise comes from torch's own generator, which the loop seeds for each step: resuming is exact. Passes without
    gradients, such as those of a reference model, see none.

    Args:
        network: A causal transformers model that uses `segment_attention`.
        alpha: Strength.
    """
    lengths: list[tuple[int, ...]] = [()]

    def note_segments(_: Any, __: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        lengths[0] = inputs.get("segment_lengths", ())

    def disturb(_: Any, __: tuple[Any, ...], embedded: Tensor) -> Tensor:
        if not (network.training and torch.is_grad_enabled() and lengths[0]):
            return embedded
        sizes = torch.tensor(lengths[0], device=embedded.device)
        bounds = alpha / torch.sqrt(sizes * embedded.shape[-1]).repeat_interleave(sizes)
        noise = torch.empty_like(embedded).uniform_(-1.0, 1.0)
        return embedded + noise * bounds[:, None].to(embedded.dtype)

    network.get_decoder().register_forward_pre_hook(note_segments, with_kwargs=True)
    network.get_input_embeddings().register_forward_hook(disturb)
