from __future__ import annotations

import math

import pytest
import torch

from tunerun.config.schema import BoundConfig
from tunerun.verify.gates import Difference, compare, near_tie_nats, quantised_bound, quantised_gate


def test_the_divergence_is_that_of_the_textbook() -> None:
    reference = [torch.tensor([[0.0, math.log(3.0)]])]
    other = [torch.zeros(1, 2)]
    wanted = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert compare([[0]], reference, other).mean_kl_nats == pytest.approx(wanted)
    assert compare([[0]], reference, reference).mean_kl_nats == 0.0


def test_a_swap_counts_unless_the_reference_hardly_preferred_its_choice() -> None:
    reference = [torch.tensor([[1.0, 0.9, 0.0], [5.0, 1.0, 0.0]])]
    swapped = [torch.tensor([[0.9, 1.0, 0.0], [1.0, 5.0, 0.0]])]
    assert compare([[0, 1]], reference, swapped).top1_agreement == 0.0
    found = compare([[0, 1]], reference, swapped, most_tie_nats=0.2)
    assert (found.top1_agreement, found.plain_top1_agreement, found.near_tie_nats) == (0.5, 0.0, 0.2)
    assert compare([[0, 1]], reference, swapped).max_logit == 4.0


def test_logits_disturbed_by_noise_diverge_by_half_its_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = torch.zeros(200, 5000)
    noisy = reference + 0.3 * torch.randn(reference.shape, generator=generator)
    measured = compare([range(200)], [reference], [noisy]).mean_kl_nats
    assert measured == pytest.approx(0.3**2 / 2, rel=0.02)
    assert near_tie_nats(measured) == pytest.approx(0.9, rel=0.02)


def test_the_perplexity_ratio_is_that_of_the_next_tokens() -> None:
    reference = [torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0], [9.0, 0.0]])]
    other = [torch.tensor([[math.log(3.0), 0.0], [0.0, math.log(3.0)], [0.0, 9.0]])]
    texts = [[0, 1, 1]]
    # Of the next tokens the reference expects 3/4 and 1/2, the other 1/4 and 3/4: sqrt(3/8) by sqrt(3/16).
    assert compare(texts, reference, other).perplexity_ratio == pytest.approx(math.sqrt(2.0))
    assert compare(texts, reference, reference).perplexity_ratio == 1.0
    assert compare([[5]], [reference[0][:1]], [other[0][:1]]).perplexity_ratio == 1.0


def difference(**measures: float) -> Difference:
    return Difference(max_logit=5.0, plain_top1_agreement=0.4, near_tie_nats=0.1, **measures)


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "pass"),
        ({"mean_kl_nats": 0.11}, "fail"),
        ({"top1_agreement": 0.94}, "fail"),
        ({"perplexity_ratio": 1.11}, "fail"),
        ({"perplexity_ratio": math.nan}, "fail"),
    ],
)
def test_each_measure_alone_fails_a_quantised_model(changed: dict[str, float], verdict: str) -> None:
    found = difference(**{"mean_kl_nats": 0.09, "top1_agreement": 0.96, "perplexity_ratio": 1.1, **changed})
    bound = quantised_bound(0.1, BoundConfig())
    gate = quantised_gate("gptq_logits:gptq", "gptq", found, bound, "Take more bits", layers=3)
    assert gate.verdict == verdict
    assert gate.measured["layers"] == 3
    assert bool(gate.reason) == bool(changed)


def test_a_quantised_model_that_fails_is_told_its_measures_and_the_key_that_allows_them():
    found = difference(mean_kl_nats=0.25, top1_agreement=0.5, perplexity_ratio=1.05)
    gate = quantised_gate("g", "q4_k_m", found, quantised_bound(0.1, BoundConfig()), "Take a finer type")
    assert gate.reason == (
        "q4_k_m loses too much here: it diverges by 0.25 nats (bound 0.1); 50.0% of first choices agree (bound 95.0%). "
        "Take a finer type, or allow it: verify.bounds.q4_k_m."
    )


def test_a_near_tie_is_one_that_the_divergence_that_is_found_explains() -> None:
    """One place in ten chooses another token, of which the model was sure by 1 nat; all else is as it was."""
    reference = torch.zeros(10, 3)
    reference[:, 0] = 1.0
    swapped = reference.clone()
    swapped[0] = torch.tensor([0.0, 1.0, 0.0])
    most = quantised_bound(0.2, BoundConfig())["near_tie_nats"]
    found = compare([[0] * 10], [reference], [swapped], most_tie_nats=most)
    assert found.mean_kl_nats < 0.04
    assert found.near_tie_nats == near_tie_nats(found.mean_kl_nats) < 1.0 < most
    assert found.top1_agreement == found.plain_top1_agreement == 0.9
    same = compare([[0] * 10], [reference], [reference], most_tie_nats=most)
    assert (same.top1_agreement, same.near_tie_nats) == (1.0, 0.0)
    broken = compare([[0] * 10], [reference], [reference * math.nan], most_tie_nats=most)
    assert broken.near_tie_nats == 0.0


def test_bounds_that_the_user_sets_take_the_place_of_our_own() -> None:
    own = quantised_bound(0.1, BoundConfig())
    raised = quantised_bound(0.1, BoundConfig(mean_kl_nats=0.5))
    assert raised == {**own, "mean_kl_nats": 0.5, "perplexity_ratio": math.exp(0.5)}
    wanted = quantised_bound(0.1, BoundConfig(top1_agreement=0.8, perplexity_ratio=2.0))
    assert wanted == {**own, "top1_agreement": 0.8, "perplexity_ratio": 2.0}
