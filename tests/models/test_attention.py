from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import random_samples, tiny_qwen2, write_store
from tunerun.formats.tokens import TokenStore
from tunerun.models import load
from tunerun.models.attention import SEGMENTS, attention_of
from tunerun.models.batch import MicroBatch, collate


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tiny_qwen2(tmp_path_factory.mktemp("model"))
    return load.load_model(folder, dtype=torch.float32, device="cpu", attention=SEGMENTS)


@torch.inference_mode()
def _logits(model: Any, batch: MicroBatch) -> torch.Tensor:
    return model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, segment_lengths=batch.segment_lengths
    ).logits[0]


def _batch(folder: Path, samples: list[Any]) -> MicroBatch:
    return collate(TokenStore.open(write_store(folder, [samples], packed=True)), [0], "cpu")


def test_every_packed_sample_has_the_logits_it_has_alone(model: Any, tmp_path: Path) -> None:
    samples = random_samples(5)
    together = _logits(model, _batch(tmp_path, samples)).split([len(tokens) for tokens, _ in samples])
    with attention_of(model, "sdpa"), torch.inference_mode():
        for (tokens, _), logits in zip(samples, together, strict=True):
            alone = model(input_ids=torch.tensor([tokens])).logits[0]
            assert torch.allclose(logits, alone, atol=1e-5)


def test_changing_one_sample_never_changes_the_logits_of_another(model: Any, tmp_path: Path) -> None:
    samples = random_samples(4)
    before = _logits(model, _batch(tmp_path / "a", samples))
    tokens, trained = samples[1]
    samples[1] = ([(token + 1) % 300 for token in tokens], trained)
    after = _logits(model, _batch(tmp_path / "b", samples))
    start, end = len(samples[0][0]), len(samples[0][0]) + len(tokens)
    assert torch.equal(before[:start], after[:start])
    assert torch.equal(before[end:], after[end:])
    assert not torch.allclose(before[start:end], after[start:end], atol=1e-3)


def test_a_sliding_window_is_honoured_within_segments(tmp_path: Path) -> None:
    folder = tiny_qwen2(tmp_path / "model", use_sliding_window=True, sliding_window=4, max_window_layers=0)
    model = load.load_model(folder, dtype=torch.float32, device="cpu", attention=SEGMENTS)
    samples = random_samples(3, longest=20)
    together = _logits(model, _batch(tmp_path / "data", samples)).split([len(tokens) for tokens, _ in samples])
    with attention_of(model, "sdpa"), torch.inference_mode():
        for (tokens, _), logits in zip(samples, together, strict=True):
            assert torch.allclose(logits, model(input_ids=torch.tensor([tokens])).logits[0], atol=1e-5)


def test_collating_restarts_positions_and_never_predicts_across_samples(tmp_path: Path) -> None:
    batch = _batch(tmp_path, [([5, 6, 7], [1, 0, 1]), ([8, 9], [1, 1])])
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.segment_lengths == (3, 2)
    assert batch.samples == (0, 1)
    # The first token of each sample is marked as trained, but nothing predicts it.
    assert batch.predicting.tolist() == [1, 3]
    assert batch.targets.tolist() == [7, 9]


def test_rows_with_the_same_sample_number_at_their_border_stay_apart(tmp_path: Path) -> None:
    store = TokenStore.open(write_store(tmp_path, [[([1, 2, 3], [0, 1, 1])], [([4, 5], [0, 1])]]))
    batch = collate(store, [0, 0, 1], "cpu")
    assert batch.segment_lengths == (3, 3, 2)
    assert batch.targets.tolist() == [2, 3, 2, 3, 5]


def test_the_end_of_turn_is_trained_even_when_it_is_the_models_padding_too(model: Any, tmp_path: Path) -> None:
    """Trainers that mask padding by its token mask the end of every answer, and the model never stops."""
    pad = model.config.pad_token_id
    batch = _batch(tmp_path, [([5, 6, pad], [0, 1, 1]), ([8, pad], [0, 1])])
    assert batch.targets.tolist() == [6, pad, pad]
    assert batch.target_segments.tolist() == [0, 0, 1]
