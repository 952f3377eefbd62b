from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from tests.tiny import tiny_qwen2
from tunerun.config.schema import TrainConfig
from tunerun.train import ema, noise, optim

ON_CPU = ["adamw", "adamw_8bit", "lion", "adafactor", "muon"]


def _rates(**config: Any) -> list[float]:
    values = TrainConfig(learning_rate=1.0, **config)
    return [optim.learning_rate(step, 10, values) for step in range(10)]


def _parameters(seed: int = 0) -> dict[str, Parameter]:
    generator = torch.Generator().manual_seed(seed)
    # The first is large enough for bitsandbytes to keep its moments in 8 bits.
    shapes = {"embed.weight": (80, 64), "proj.weight": (64, 64), "small.weight": (8, 8), "norm.weight": (16,)}
    return {name: Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def _train(parameters: dict[str, Parameter], optimisers: Any, start: int, end: int, rate: float = 0.01) -> None:
    for step in range(start, end):
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optim.apply(optimisers, rate)


def _make(parameters: dict[str, Parameter], kind: Any, **config: Any) -> Any:
    return optim.make_optimisers(parameters, TrainConfig(optimizer=kind, **config), embeddings=["embed.weight"])


def test_the_warm_up_rises_in_a_line_and_its_last_step_has_the_peak() -> None:
    rates = _rates(warmup_fraction=0.3, schedule="constant")
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rates[3:] == [1.0] * 7


def test_the_warm_up_can_be_a_number_of_steps() -> None:
    assert _rates(warmup_steps=4, schedule="constant")[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert _rates(warmup_steps=0, warmup_fraction=0.5)[0] == 1.0


def test_without_a_warm_up_the_first_step_has_the_peak() -> None:
    assert _rates(warmup_fraction=0.0)[0] == 1.0


def test_cosine_and_linear_end_at_their_fraction_of_the_peak() -> None:
    cosine = _rates(warmup_fraction=0.0, schedule="cosine", min_learning_rate_fraction=0.1)
    assert cosine[5] == pytest.approx(0.55)
    assert cosine == sorted(cosine, reverse=True)
    assert _rates(warmup_fraction=0.0, schedule="linear", min_learning_rate_fraction=0.1)[5] == pytest.approx(0.55)


def test_wsd_stays_at_the_peak_and_falls_at_the_end() -> None:
    rates = _rates(warmup_fraction=0.1, schedule="wsd", decay_fraction=0.4, min_learning_rate_fraction=0.1)
    assert rates[:7] == [1.0] * 7
    assert rates[7:] == pytest.approx([0.1 + 0.9 * (1 - math.sqrt(part)) for part in (0.25, 0.5, 0.75)])


def test_biases_and_norms_are_not_decayed() -> None:
    matrix, vector = Parameter(torch.ones(2, 2)), Parameter(torch.ones(2))
    optimisers = optim.make_optimisers({"matrix": matrix, "vector": vector}, TrainConfig(weight_decay=0.5))
    matrix.grad, vector.grad = torch.zeros(2, 2), torch.zeros(2)
    optim.apply(optimisers, 0.1)
    assert torch.allclose(matrix, torch.full((2, 2), 0.95))
    assert torch.equal(vector, torch.ones(2))


def test_a_factor_changes_the_rate_of_its_parameters_alone() -> None:
    parameters = {"a": Parameter(torch.zeros(2, 2)), "b": Parameter(torch.zeros(2, 2))}
    optimisers = optim.make_optimisers(parameters, TrainConfig(), rate_factors={"b": 16.0})
    for parameter in parameters.values():
        parameter.grad = torch.ones(2, 2)
    optim.apply(optimisers, 0.01)
    assert torch.allclose(parameters["b"], 16 * parameters["a"])


@pytest.mark.parametrize("kind", ON_CPU)
def test_state_survives_a_round_trip_through_tensors_and_numbers(kind: str) -> None:
    if kind == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    straight = _parameters()
    first = _make(straight, kind, weight_decay=0.1)
    _train(straight, first, 0, 3)
    resumed = {name: Parameter(value.detach().clone()) for name, value in straight.items()}
    second = _make(resumed, kind, weight_decay=0.1)
    tensors, numbers = optim.state_of(first, straight)
    optim.restore_state(second, resumed, tensors, numbers)
    assert tensors and all(isinstance(value, int | float) for value in numbers.values())
    _train(straight, first, 3, 6)
    _train(resumed, second, 3, 6)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


@pytest.mark.parametrize("kind", ON_CPU)
def test_every_kind_makes_a_step_of_about_the_learning_rate(kind: str) -> None:
    if kind == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    parameters = _parameters()
    before = {name: value.detach().clone() for name, value in parameters.items()}
    _train(parameters, _make(parameters, kind), 0, 1, rate=0.01)
    for name, value in parameters.items():
        change = float((value.detach() - before[name]).square().mean().sqrt())
        assert 0.001 < change < 0.02, (kind, name, change)


def test_lion_follows_its_paper() -> None:
    parameter = Parameter(torch.tensor([[1.0, -2.0]]))
    optimisers = _make({"p": parameter}, "lion", weight_decay=0.1)
    wanted, momentum = parameter.detach().clone(), torch.zeros(1, 2)
    for step in range(3):
        gradient = torch.tensor([[1.0, -0.5]]) * (-2.0) ** step
        parameter.grad = gradient.clone()
        optim.apply(optimisers, 0.01)
        direction = torch.sign(0.9 * momentum + 0.1 * gradient)
        wanted = wanted - 0.01 * (direction + 0.1 * wanted)
        momentum = 0.99 * momentum + 0.01 * gradient
    assert torch.allclose(parameter, wanted)


def test_muon_moves_inner_matrices_and_leaves_the_rest_to_adamw() -> None:
    parameters = _parameters()
    muon, adamw = _make(parameters, "muon")
    _train(parameters, (muon, adamw), 0, 1)
    tensors, _ = optim.state_of((muon, adamw), parameters)
    assert {name for name in tensors if name.endswith("momentum_buffer")} == {
        "proj.weight|momentum_buffer",
        "small.weight|momentum_buffer",
    }
    assert "embed.weight|exp_avg" in tensors and "norm.weight|exp_avg" in tensors


def test_eight_bit_moments_take_a_quarter_of_the_memory() -> None:
    pytest.importorskip("bitsandbytes")
    parameters = {"embed.weight": Parameter(torch.randn(80, 64))}
    sizes = {}
    for kind in ("adamw", "adamw_8bit"):
        tensors, _ = optim.state_of((made := _make(parameters, kind)), parameters)
        _train(parameters, made, 0, 1)
        tensors, _ = optim.state_of(made, parameters)
        sizes[kind] = sum(value.nbytes for name, value in tensors.items() if "qmap" not in name)
    assert sizes["adamw_8bit"] < 0.27 * sizes["adamw"]


def test_an_average_forgets_the_beginning_and_is_applied_for_a_while_only() -> None:
    parameter = Parameter(torch.zeros(2))
    average = ema.start({"p": parameter}, 0.9)
    wanted = 0.0
    for step in range(30):
        parameter.data.fill_(float(step + 1))
        ema.update(average, {"p": parameter}, step)
        decay = min(0.9, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * (step + 1)
    with ema.applied(average, {"p": parameter}):
        assert torch.allclose(parameter, torch.full((2,), wanted))
    assert torch.equal(parameter, torch.full((2,), 30.0))
    with ema.applied(None, {"p": parameter}):
        assert torch.equal(parameter, torch.full((2,), 30.0))


def test_noise_is_bounded_by_each_samples_own_length_and_absent_without_gradients(tmp_path: Any) -> None:
    from tunerun.models import load
    from tunerun.models.attention import SEGMENTS

    network = load.load_model(tiny_qwen2(tmp_path), dtype=torch.float32, device="cpu", attention=SEGMENTS)
    seen: list[torch.Tensor] = []
    network.get_decoder().layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    tokens = torch.arange(20)[None]
    inputs = {"input_ids": tokens, "position_ids": tokens, "segment_lengths": (4, 16), "use_cache": False}

    def embedded() -> torch.Tensor:
        network(**inputs)
        return seen.pop()[0]

    noise.add_noise(network, 5.0)
    clean = embedded()
    network.train()
    torch.manual_seed(0)
    noisy = embedded()
    for place, length in ((slice(0, 4), 4), (slice(4, 20), 16)):
        largest = float((noisy - clean)[place].abs().max())
        bound = 5.0 / math.sqrt(length * 64)
        assert 0.9 * bound < largest <= bound * 1.0001
    torch.manual_seed(0)
    assert torch.equal(embedded(), noisy)
    with torch.no_grad():
        assert torch.equal(embedded(), clean)
