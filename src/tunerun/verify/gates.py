"""What a gate says, and how two models' predictions are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tunerun.config.schema import BoundConfig, QuantisedForm

_LEAST_AGREEMENT_FRACTION = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """One thing that was checked."""

    name: str
    measured: dict[str, Any]
    bound: dict[str, Any]
    verdict: Literal["pass", "fail", "not_proved"]
    reason: str
    """What the verdict means, or why there is no proof; empty for a plain pass."""


def text_gate(name: str, compared: int, faults: Sequence[str], advice: str) -> Gate:
    """Judges how a hand-off renders and tokenises conversations.

    Args:
        name: Of the gate.
        compared: How many conversations there was something to compare of.
        faults: What is otherwise than in training, one for each conversation.
        advice: What to do about them.
    """
    measured, bound = {"texts": compared, "different_texts": len(faults)}, {"different_texts": 0}
    if faults:
        return Gate(name=name, measured=measured, bound=bound, verdict="fail", reason=f"{faults[0]} {advice}")
    if not compared:
        reason = "the template refuses every conversation it was tried on"
        return Gate(name=name, measured=measured, bound=bound, verdict="not_proved", reason=reason)
    return Gate(name=name, measured=measured, bound=bound, verdict="pass", reason="")


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one model's predictions are from another's, over all places of some texts."""

    mean_kl_nats: float
    """Mean Kullback-Leibler divergence of the other from the reference."""
    max_logit: float
    """Largest absolute difference of two logits."""
    top1_agreement: float
    """Share of places with the same first choice, near ties of the reference counted as the same."""
    plain_top1_agreement: float
    """Share of places with the same first choice, near ties or not."""
    near_tie_nats: float
    """Lead of a first choice below which it is a near tie."""
    perplexity_ratio: float
    """The other's perplexity on the texts by the reference's."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What the model that others are made from predicts."""

    texts: Sequence[Sequence[int]]
    """Token ids."""
    logits: Sequence[Tensor]
    """Of each text, (tokens, vocabulary), in float32."""


def compare(
    texts: Sequence[Sequence[int]], reference: Sequence[Tensor], other: Sequence[Tensor], *, most_tie_nats: float = 0.0
) -> Difference:
    """Compares logits.

    Args:
        texts: Token ids.
        reference: For each text (tokens, vocabulary).
        other: Of the same shapes.
        most_tie_nats: Where the reference prefers its first choice by less than this, and by less than the divergence
            that is found explains, a swap is no disagreement.
    """
    kl, places, largest = 0.0, 0, 0.0
    swapped: list[Tensor] = []
    lost, predicted = torch.zeros((), dtype=torch.float64), 0
    for ids, left, right in zip(texts, reference, other, strict=True):
        assert left.shape == right.shape, f"logits of shape {tuple(left.shape)} and {tuple(right.shape)}"
        p, q = left.double().log_softmax(-1), right.double().log_softmax(-1)
        kl += float((p.exp() * (p - q)).sum())
        top = p.topk(2, dim=-1)
        swapped.append((top.values[:, 0] - top.values[:, 1])[q.argmax(-1) != top.indices[:, 0]])
        places += len(p)
        largest = max(largest, float((left - right).abs().max()))
        lost += (p - q)[:-1].gather(1, torch.tensor(ids[1:], dtype=torch.int64)[:, None]).sum()
        predicted += len(ids) - 1
    leads = torch.cat(swapped)
    # Sums of the rounded may be below zero.
    tie = min(near_tie_nats(max(0.0, kl / places)), most_tie_nats)
    return Difference(
        mean_kl_nats=kl / places,
        max_logit=largest,
        top1_agreement=1.0 - int((leads >= tie).sum()) / places,
        plain_top1_agreement=1.0 - len(leads) / places,
        near_tie_nats=tie,
        perplexity_ratio=float((lost / max(predicted, 1)).exp()),
    )


def near_tie_nats(mean_kl_nats: float) -> float:
    """Returns the lead of a first choice that rounding may undo.

    Logits disturbed with standard deviation s diverge by about s^2 / 2 nats; three s is what chance hardly exceeds.
    """
    return 3.0 * math.sqrt(2.0 * mean_kl_nats)


def quantised_bound(own_kl_nats: float, wanted: BoundConfig) -> dict[str, float]:
    """Returns what a quantised model is held to.

    In llama.cpp's table for Llama 3 8B (tools/perplexity/README.md) the logarithm of the perplexity ratio is near the
    divergence from q4_k_m to iq1_s, and below it for finer types, so that one number bounds both.

    Args:
        own_kl_nats: Largest mean divergence from the unquantised model, unless another is wanted.
        wanted: Bounds that the user set.
    """
    divergence = _or(wanted.mean_kl_nats, own_kl_nats)
    return {
        "mean_kl_nats": divergence,
        "top1_agreement": _or(wanted.top1_agreement, _LEAST_AGREEMENT_FRACTION),
        # Not the user's: a file that may lose more does not agree any better.
        "near_tie_nats": near_tie_nats(own_kl_nats),
        "perplexity_ratio": _or(wanted.perplexity_ratio, math.exp(divergence)),
    }


def _or(wanted: float | None, own: float) -> float:
    return own if wanted is None else wanted


def quantised_gate(
    name: str, form: QuantisedForm, found: Difference, bound: dict[str, float], advice: str, **measured: Any
) -> Gate:
    """Judges how far a quantised model is from the one it was made from.

    Args:
        name: Of the gate.
        form: How it is quantised.
        found: The difference, with near ties up to the bound's.
        bound: From `quantised_bound`.
        advice: What to do when it is too far, without a full stop.
        measured: More to report.
    """
    divergence, agreement, ratio = (bound[key] for key in ("mean_kl_nats", "top1_agreement", "perplexity_ratio"))
    faults: list[str] = []
    # Written so that a NaN fails.
    if not found.mean_kl_nats <= divergence:
        faults.append(f"it diverges by {found.mean_kl_nats:.2g} nats (bound {divergence:.2g})")
    if not found.top1_agreement >= agreement:
        faults.append(f"{found.top1_agreement:.1%} of first choices agree (bound {agreement:.1%})")
    if not found.perplexity_ratio <= ratio:
        faults.append(f"its perplexity is {found.perplexity_ratio:.3f} times the model's (bound {ratio:.3f})")
    fix = f"{advice}, or allow it: verify.bounds.{form}"
    reason = f"{form} loses too much here: {'; '.join(faults)}. {fix}." if faults else ""
    verdict: Literal["pass", "fail"] = "fail" if faults else "pass"
    return Gate(name=name, measured={**asdict(found), **measured}, bound=bound, verdict=verdict, reason=reason)


@torch.inference_mode()
def logits_of(network: Any, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Returns the float32 logits of a model at every place of some texts, on the CPU: (tokens, vocabulary) each."""
    return [
        network(input_ids=torch.tensor([list(ids)], device=network.device)).logits[0].float().cpu() for ids in texts
    ]
