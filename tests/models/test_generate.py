from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import tiny_qwen2
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.models import load
from tunerun.models.generate import answer_greedily, stream
from tunerun.models.stops import stop_token_ids

PROMPTS = [[5, 6, 7, 8, 9], [40], [100, 101, 102]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen2(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load.load_model(folder, dtype=torch.float32, device="cpu")


@torch.inference_mode()
def _without_cache(model: Any, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_greedy_answers_in_a_batch_are_those_of_each_prompt_alone(model: Any) -> None:
    wanted = [_without_cache(model, prompt, 8) for prompt in PROMPTS]
    answers = answer_greedily(model, PROMPTS, max_new_tokens=8, stop_token_ids=())
    assert [list(answer.token_ids) for answer in answers] == wanted
    assert not any(answer.stopped for answer in answers)
    assert [list(stream(model, prompt, max_new_tokens=8)) for prompt in PROMPTS] == wanted


def test_an_answer_ends_before_its_stop_token(model: Any) -> None:
    wanted = _without_cache(model, PROMPTS[0], 8)
    stop = wanted[3]
    before = wanted[: wanted.index(stop)]
    answers = answer_greedily(model, PROMPTS, max_new_tokens=8, stop_token_ids={stop})
    assert (list(answers[0].token_ids), answers[0].stopped) == (before, True)
    assert list(stream(model, PROMPTS[0], max_new_tokens=8, stop_token_ids={stop})) == before


def test_sampling_follows_its_seed_and_top_k_of_one_is_greedy(model: Any) -> None:
    def sample(seed: int, **options: Any) -> list[int]:
        return list(stream(model, PROMPTS[0], max_new_tokens=12, temperature=1.5, seed=seed, **options))

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert sample(3, top_k=1) == _without_cache(model, PROMPTS[0], 12)
    assert sample(4, top_p=1e-9) == _without_cache(model, PROMPTS[0], 12)


def test_stop_tokens_come_from_config_tokenizer_and_known_turn_ends(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    wanted = {tokenizer.backend.token_to_id(text) for text in ("<|im_end|>", "<|endoftext|>")}
    assert stop_token_ids(folder, tokenizer) == wanted
