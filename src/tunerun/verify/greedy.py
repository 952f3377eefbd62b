"""Gate `greedy`: a GGUF file with unquantised weights goes on as the model it was made from does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunerun.errors import MissingExtra
from tunerun.models.generate import answer_greedily
from tunerun.plan.steps import VERIFY_ANSWER_TOKENS
from tunerun.verify import gguf_model
from tunerun.verify.gates import Gate, logits_of

_ADVICE = "Export again; if it stays, the file's weights are not the model's."


@dataclass(frozen=True, slots=True)
class Continuation:
    """A prompt with what a model says after it."""

    token_ids: tuple[int, ...]
    """Of the prompt and of the answer."""
    prompt_length: int
    sure: int
    """Tokens of the answer before the first one that rounding may exchange."""


def continue_prompts(network: Any, prompts: Sequence[Sequence[int]], near_tie_nats: float) -> list[Continuation]:
    """Lets a model go on after prompts.

    Args:
        network: The model that the file was made from, in float32.
        prompts: Token ids.
        near_tie_nats: Lead of a first choice that rounding may undo.
    """
    answers = answer_greedily(network, prompts, max_new_tokens=VERIFY_ANSWER_TOKENS, stop_token_ids=())
    whole = [(*prompt, *answer.token_ids) for prompt, answer in zip(prompts, answers, strict=True)]
    found = []
    for ids, prompt, logits in zip(whole, prompts, logits_of(network, whole), strict=True):
        best = logits[len(prompt) - 1 : -1].log_softmax(-1).topk(2, dim=-1)
        chosen = best.indices[:, 0] == torch.tensor(ids[len(prompt) :])
        unsure = ((best.values[:, 0] - best.values[:, 1] < near_tie_nats) | ~chosen).nonzero()
        found.append(Continuation(ids, len(prompt), int(unsure[0]) if len(unsure) else len(best.values)))
    return found


def greedy_gate(path: Path, wanted: Sequence[Continuation], near_tie_nats: float, threads: int) -> Gate:
    """Compares what llama.cpp would say next, token by token, up to each answer's first near tie.

    Args:
        path: The GGUF file.
        wanted: What the model that it was made from says.
        near_tie_nats: For the report.
        threads: CPU threads.
    """
    name = f"greedy:{path.name}"
    bound = {"different_answers": 0, "near_tie_nats": near_tie_nats}
    try:
        longest = max(len(item.token_ids) for item in wanted)
        model = gguf_model.open_gguf(path, vocabulary_only=False, context=longest, threads=threads)
    except MissingExtra as error:
        return Gate(name=name, measured={}, bound=bound, verdict="not_proved", reason=str(error))
    different = []
    for item, logits in zip(wanted, gguf_model.logits(model, [item.token_ids for item in wanted]), strict=True):
        start = item.prompt_length
        said = logits[start - 1 : start - 1 + item.sure].argmax(-1).tolist()
        answer = list(item.token_ids[start : start + item.sure])
        if said != answer:
            pairs = zip(said, answer, strict=True)
            different.append(next(place for place, (left, right) in enumerate(pairs) if left != right))
    tokens = sum(item.sure for item in wanted)
    measured = {"prompts": len(wanted), "tokens": tokens, "different_answers": len(different)}
    if different:
        reason = f"{len(different)} of {len(wanted)} answers differ, the first at token {different[0]}. {_ADVICE}"
        return Gate(name=name, measured=measured, bound=bound, verdict="fail", reason=reason)
    if not tokens:
        reason = "the model is sure of no token at all, so that nothing can be compared"
        return Gate(name=name, measured=measured, bound=bound, verdict="not_proved", reason=reason)
    return Gate(name=name, measured=measured, bound=bound, verdict="pass", reason="")
