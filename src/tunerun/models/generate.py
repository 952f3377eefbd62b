"""Greedy and sampled generation with a key-value cache, alone (as a stream) or in a batch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model wrote after a prompt."""

    token_ids: tuple[int, ...]
    """Without the token that ended it."""
    stopped: bool
    """Whether the model ended it itself, before the limit."""


def stream(
    model: Any,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    stop_token_ids: Collection[int] = (),
) -> Iterator[int]:
    """Yields the tokens that follow a prompt, one as soon as it is known; the stop token is not yielded.

    Args:
        model: A transformers or peft model in evaluation mode, with an attention function that takes a cache.
        prompt_ids: At least one token.
        max_new_tokens: Most tokens yielded.
        temperature: Divides the logits before sampling; 0 takes the most likely token.
        top_p: Samples among the most likely tokens that together have this probability.
        top_k: Samples among so many most likely tokens; 0 for all.
        seed: Decides the samples.
        stop_token_ids: Tokens that end the text.
    """
    written = steps(
        model, prompt_ids, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
    )
    for step in written:
        if step.token in stop_token_ids:
            return
        yield step.token


@dataclass(frozen=True, slots=True)
class Step:
    """A token that a model wrote."""

    token: int
    logits: Tensor
    """What it was chosen by, at temperature 1: float32 on the CPU, shape [vocabulary]."""


@torch.inference_mode()
def steps(
    model: Any,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int,
    vocabulary: int | None = None,
) -> Iterator[Step]:
    """Yields the tokens that follow a prompt, as `stream` does, with what they were chosen by.

    Args:
        model: As for `stream`.
        prompt_ids: At least one token.
        max_new_tokens: Most tokens yielded.
        temperature: As for `stream`.
        top_p: As for `stream`.
        top_k: As for `stream`.
        seed: As for `stream`.
        vocabulary: Takes so many logits, for a model whose head has grown; None takes all.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    inputs = torch.tensor([list(prompt_ids)], device=model.device)
    cache = None
    for _ in range(max_new_tokens):
        output = model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        logits = output.logits[0, -1, :vocabulary].float().cpu()
        token = choose(logits, temperature=temperature, top_p=top_p, top_k=top_k, generator=generator)
        yield Step(token, logits)
        inputs = torch.tensor([[token]], device=model.device)


@torch.inference_mode()
def answer_greedily(
    model: Any, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, stop_token_ids: Collection[int]
) -> list[Answer]:
    """Answers several prompts at once, always with the most likely token.

    Args:
        model: A transformers or peft model in evaluation mode, with an attention function that takes a cache.
        prompts: Token ids of each prompt, at least one each.
        max_new_tokens: Longest answer.
        stop_token_ids: Tokens that end an answer.

    Returns:
        One answer a prompt, in order.
    """
    inputs, mask = _pad_left(prompts, model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    stops = torch.tensor(sorted(stop_token_ids), device=model.device)
    cache, open_rows, chosen = None, torch.ones(len(prompts), dtype=torch.bool, device=model.device), []
    for _ in range(max_new_tokens):
        output = model(
            input_ids=inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        tokens = output.logits[:, -1].float().argmax(-1)
        chosen.append(tokens)
        open_rows = open_rows & ~torch.isin(tokens, stops)
        if not bool(open_rows.any()):
            break
        inputs = tokens[:, None]
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], 1)
        positions = positions[:, -1:] + 1
    return [_cut(row, stop_token_ids) for row in torch.stack(chosen, 1).tolist()]


def _cut(tokens: list[int], stops: Collection[int]) -> Answer:
    end = next((index for index, token in enumerate(tokens) if token in stops), None)
    return Answer(tuple(tokens[:end]), stopped=end is not None)


def _pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    rows = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(rows, device=device), torch.tensor(mask, device=device)


def choose(logits: Tensor, *, temperature: float, top_p: float, top_k: int, generator: torch.Generator) -> int:
    """Returns the next token.

    Args:
        logits: float32 on the CPU, shape [vocabulary].
        temperature: As for `stream`.
        top_p: As for `stream`.
        top_k: As for `stream`.
        generator: Draws the samples.
    """
    if temperature <= 0:
        return int(logits.argmax())
    values, order = (logits / temperature).sort(descending=True)
    if top_k > 0:
        values, order = values[:top_k], order[:top_k]
    probabilities = values.softmax(0)
    # A token stays when those before it have less than top_p: the first one always does.
    kept = probabilities.cumsum(0) - probabilities < top_p
    pick = torch.multinomial(probabilities * kept, 1, generator=generator)
    return int(order[pick])
