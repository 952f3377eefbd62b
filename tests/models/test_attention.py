from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import random_samples, tiny_qwen2, write_store
from tunerun.formats.tokens import TokenStore
from tunerun.models import attention, load
from tunerun.models.attention import SEGMENTS, attention_of, segment_attention
from tunerun.models.batch import MicroBatch, collate, padded
from tunerun.models.loss import last_hidden


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


def _attend(lengths: tuple[int, ...], dtype: torch.dtype, **options: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Attention of 4 heads over 2 key heads, and the gradients of its inputs."""
    generator = torch.Generator().manual_seed(0)
    sizes = (4, 2, 2)
    states = [
        torch.randn((1, heads, sum(lengths), 16), generator=generator).to(dtype).requires_grad_() for heads in sizes
    ]
    found, _ = segment_attention(torch.nn.Module(), *states, None, segment_lengths=lengths, **options)
    found.float().square().sum().backward()
    return found.detach().float(), [state.grad.float() for state in states]


@pytest.mark.parametrize("lengths", [(7, 1, 40), (64, 64)])
def test_half_precision_on_a_cpu_is_float32_up_to_rounding(lengths: tuple[int, ...]) -> None:
    wanted, wanted_gradients = _attend(lengths, torch.float32, scaling=0.3)
    found, gradients = _attend(lengths, torch.bfloat16, scaling=0.3)
    for one, other in zip([found, *gradients], [wanted, *wanted_gradients], strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-2


@pytest.mark.parametrize("lengths", [(5, 118, 64, 33), (31, 1, 100), (32, 40, 96)])
def test_half_precision_on_a_cpu_keeps_segments_apart(lengths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    states = [torch.randn(1, heads, sum(lengths), 8).bfloat16() for heads in (4, 2, 2)]

    def attended() -> torch.Tensor:
        return segment_attention(torch.nn.Module(), *states, None, segment_lengths=lengths)[0]

    start, end, before = lengths[0], lengths[0] + lengths[1], attended()
    for part in states:
        part[:, :, start:end] *= -50
    after = attended()
    assert torch.equal(before[:, :start], after[:, :start])
    assert torch.equal(before[:, end:], after[:, end:])
    assert not torch.equal(before[:, start:end], after[:, start:end])


@pytest.mark.parametrize("window", [None, 5])
def test_bounded_scores_are_those_of_the_formula(window: int | None) -> None:
    """Softcap: Gemma 2; a bound far above all scores changes nothing."""
    lengths = (9, 12)
    free, free_gradients = _attend(lengths, torch.float32, sliding_window=window)
    bounded, gradients = _attend(lengths, torch.float32, sliding_window=window, softcap=1e4)
    assert torch.allclose(bounded, free, atol=1e-5)
    assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(gradients, free_gradients, strict=True))
    tight, _ = _attend(lengths, torch.float32, sliding_window=window, softcap=0.5)
    assert not torch.allclose(tight, free, atol=1e-2)


def test_gemma_2_has_the_logits_of_its_own_attention(tmp_path: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 320, "head_dim": 8}
    config = Gemma2Config(
        **sizes,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=6,
        attn_logit_softcapping=0.2,
        query_pre_attn_scalar=1,
    )
    torch.manual_seed(0)
    gemma = Gemma2ForCausalLM(config).eval()
    gemma.set_attn_implementation(SEGMENTS)
    samples = random_samples(3, longest=20)
    together = _logits(gemma, _batch(tmp_path / "data", samples)).split([len(tokens) for tokens, _ in samples])
    with attention_of(gemma, "eager"), torch.inference_mode():
        for (tokens, _), logits in zip(samples, together, strict=True):
            assert torch.allclose(logits, gemma(input_ids=torch.tensor([tokens])).logits[0], atol=1e-5)


def _bounds(lengths: tuple[int, ...], device: str = "cpu") -> torch.Tensor:
    return torch.tensor([sum(lengths[:count]) for count in range(len(lengths) + 1)], dtype=torch.int32, device=device)


def test_torch_takes_the_call_for_all_segments() -> None:
    """Without a GPU, torch checks the arguments and the shape only."""
    states = tuple(torch.empty(1, heads, 12, 16, device="meta", dtype=torch.bfloat16) for heads in (4, 2, 2))
    for window in (None, 5):
        rule = attention._Rule(dropout=0.0, scaling=0.3, window=window, softcap=None)
        found = attention._in_one_call(states, (5, 7), _bounds((5, 7), "meta"), rule)
        assert found.shape == (1, 12, 4, 16)


@pytest.mark.parametrize("window", [None, 5])
def test_the_call_for_all_segments_means_what_the_calls_for_each_mean(
    monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    """Stands for a GPU: attention by the definition of torch's `varlen_attn`, with its arguments."""
    lengths = (9, 12, 3)
    wanted, wanted_gradients = _attend(lengths, torch.float32, scaling=0.3, sliding_window=window)

    def by_definition(
        query: Any, key: Any, value: Any, starts: Any, _: Any, longest: int, __: int, *, scale: float, window_size: Any,
        enable_gqa: bool,
    ) -> torch.Tensor:  # fmt: skip
        assert (longest, enable_gqa, window_size[1]) == (max(lengths), True, 0)
        place = torch.arange(query.shape[0])
        segment = torch.bucketize(place, starts[1:-1], right=True)
        distance = place[:, None] - place[None, :]
        seen = (segment[:, None] == segment[None, :]) & (distance >= 0)
        if window_size[0] >= 0:
            seen &= distance <= window_size[0]
        key, value = (states.repeat_interleave(2, 1) for states in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query, key).mul(scale).masked_fill(~seen, float("-inf"))
        return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)

    monkeypatch.setattr(attention, "_flash_takes", lambda *_: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", by_definition)
    options = {"scaling": 0.3, "sliding_window": window, "segment_bounds": _bounds(lengths)}
    found, gradients = _attend(lengths, torch.float32, **options)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(gradients, wanted_gradients, strict=True))


def test_padding_changes_nothing_for_the_samples(model: Any, tmp_path: Path) -> None:
    batch = _batch(tmp_path, random_samples(4))
    longer = padded(batch, 64)
    assert longer.input_ids.shape[1] % 64 == 0
    assert (longer.tokens, longer.trained_tokens, longer.samples) == (batch.tokens, batch.trained_tokens, batch.samples)
    with torch.inference_mode():
        assert torch.allclose(last_hidden(model, longer), last_hidden(model, batch), atol=1e-5)
    assert padded(longer, 64) is longer


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
