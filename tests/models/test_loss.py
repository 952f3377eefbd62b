from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.tiny import random_samples, tiny_qwen2, write_store
from tunerun.formats.tokens import TokenStore
from tunerun.models import load, loss
from tunerun.models.attention import SEGMENTS
from tunerun.models.batch import MicroBatch, collate
from tunerun.models.loss import token_loss
from tunerun.models.score import score


@pytest.fixture
def model(tmp_path: Path) -> Any:
    folder = tiny_qwen2(tmp_path / "model")
    return load.load_model(folder, dtype=torch.float32, device="cpu", attention=SEGMENTS)


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return TokenStore.open(write_store(tmp_path / "data", [[sample] for sample in random_samples(6)]))


def _reference(model: Any, batch: MicroBatch, smoothing: float = 0.0) -> torch.Tensor:
    logits = model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, segment_lengths=batch.segment_lengths
    ).logits[0]
    return F.cross_entropy(logits[batch.predicting], batch.targets, reduction="sum", label_smoothing=smoothing)


def _gradients(model: Any, value: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    value.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("logits_bytes", [64 << 20, 4 * 320 * 7])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_are_those_of_plain_cross_entropy(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch, tied: bool, logits_bytes: int, smoothing: float
) -> None:
    monkeypatch.setitem(loss.LOGITS_BYTES, "cpu", logits_bytes)
    folder = tiny_qwen2(tmp_path / f"tied-{tied}", tie_word_embeddings=tied)
    model = load.load_model(folder, dtype=torch.float32, device="cpu", attention=SEGMENTS)
    batch = collate(store, range(6), "cpu")
    wanted = _reference(model, batch, smoothing)
    found = token_loss(model, batch, label_smoothing=smoothing)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    wanted_gradient = _gradients(model, wanted)
    difference = _gradients(model, token_loss(model, batch, label_smoothing=smoothing)) - wanted_gradient
    assert float(difference.norm() / wanted_gradient.norm()) < 1e-6


def test_a_head_with_a_bias_goes_through_the_models_own_forward(model: Any, store: TokenStore) -> None:
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.linspace(-1, 1, head.out_features))
    batch = collate(store, range(6), "cpu")
    assert float(token_loss(model, batch)) == pytest.approx(float(_reference(model, batch)), rel=1e-6)


def test_the_score_is_the_mean_over_trained_tokens_in_any_batch_size(model: Any, store: TokenStore) -> None:
    one = score(model, store, max_rows=None, batch_size=1, device="cpu")
    many = score(model, store, max_rows=None, batch_size=4, device="cpu")
    batch = collate(store, range(6), "cpu")
    with torch.inference_mode():
        mean = float(_reference(model, batch)) / batch.trained_tokens
    assert one.loss == pytest.approx(mean, rel=1e-6)
    assert many.loss == pytest.approx(mean, rel=1e-6)
    assert one.perplexity == pytest.approx(math.exp(mean), rel=1e-5)
    assert (one.rows, one.trained_tokens) == (6, batch.trained_tokens)
    assert score(model, store, max_rows=2, batch_size=4, device="cpu").rows == 2
