from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from tunerun.config.schema import TrainConfig
from tunerun.train import optim


def _rates(**config: object) -> list[float]:
    values = TrainConfig(learning_rate=1.0, **config)  # type: ignore[arg-type]
    return [optim.learning_rate(step, 10, values) for step in range(10)]


def test_the_warm_up_rises_in_a_line_and_its_last_step_has_the_peak() -> None:
    rates = _rates(warmup_fraction=0.3, schedule="constant")
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rates[3:] == [1.0] * 7


def test_without_a_warm_up_the_first_step_has_the_peak() -> None:
    assert _rates(warmup_fraction=0.0)[0] == 1.0


def test_cosine_and_linear_end_at_their_fraction_of_the_peak() -> None:
    cosine = _rates(warmup_fraction=0.0, schedule="cosine", min_learning_rate_fraction=0.1)
    assert cosine[5] == pytest.approx(0.55)
    assert cosine == sorted(cosine, reverse=True)
    assert _rates(warmup_fraction=0.0, schedule="linear", min_learning_rate_fraction=0.1)[5] == pytest.approx(0.55)


def test_biases_and_norms_are_not_decayed() -> None:
    matrix, vector = Parameter(torch.ones(2, 2)), Parameter(torch.ones(2))
    optimiser = optim.make_optimiser({"matrix": matrix, "vector": vector}, TrainConfig(weight_decay=0.5))
    matrix.grad, vector.grad = torch.zeros(2, 2), torch.zeros(2)
    optimiser.param_groups[0]["lr"] = optimiser.param_groups[1]["lr"] = 0.1
    optimiser.step()
    assert torch.allclose(matrix, torch.full((2, 2), 0.95))
    assert torch.equal(vector, torch.ones(2))


def test_state_survives_a_round_trip_through_tensors() -> None:
    def after(steps: int, parameter: Parameter, optimiser: torch.optim.AdamW) -> None:
        for step in range(steps):
            parameter.grad = torch.full((3, 3), float(step + 1))
            optimiser.step()

    config = TrainConfig(learning_rate=0.1)
    straight = Parameter(torch.zeros(3, 3))
    first = optim.make_optimiser({"p": straight}, config)
    after(2, straight, first)
    resumed = Parameter(straight.detach().clone())
    second = optim.make_optimiser({"p": resumed}, config)
    optim.restore_state(second, {"p": resumed}, optim.state_tensors(first, {"p": straight}))
    after(2, straight, first)
    after(2, resumed, second)
    assert torch.equal(straight, resumed)
