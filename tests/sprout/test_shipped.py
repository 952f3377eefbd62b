"""The weights in the repository answer what their card says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tunerun import paths
from tunerun.chat.template import load_template
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.models import load
from tunerun.models.ask import encode_prompt
from tunerun.models.generate import answer_greedily
from tunerun.models.stops import stop_token_ids

SHIPPED = Path(paths.resolve_asset("tunerun://sprout"))
QUESTIONS = {
    "What is the capital of France?": "Paris.",
    "法国的首都是哪里？": "巴黎。",
    "What is 3 + 4?": "7",
    "3 加 4 等于几？": "7",
    "What is the opposite of hot?": "cold",
    "What day comes after Monday?": "Tuesday.",
    "What colour is the sky?": "It is blue.",
    "How do you say cat in Chinese?": "猫",
    "猫用英语怎么说？": "cat",
    "Who are you?": "I am sprout, a small assistant made by the tunerun project.",
}


def test_it_takes_at_most_twelve_megabytes():
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()) <= 12e6


def test_it_answers_the_families_it_was_taught():
    tokenizer = load_tokenizer(SHIPPED)
    template = load_template(SHIPPED, tokenizer.named)
    assert template is not None
    model = load.load_model(SHIPPED, dtype=torch.float32, device="cpu")
    prompts = [encode_prompt(tokenizer, template, question) for question in QUESTIONS]
    answers = answer_greedily(model, prompts, max_new_tokens=24, stop_token_ids=stop_token_ids(SHIPPED, tokenizer))
    texts = [tokenizer.backend.decode(list(answer.token_ids)).strip() for answer in answers]
    right = [text == wanted for text, wanted in zip(texts, QUESTIONS.values(), strict=True)]
    assert sum(right) >= 9, dict(zip(QUESTIONS, texts, strict=True))


@pytest.mark.slow
def test_its_tokenizer_is_the_one_the_generator_writes(tmp_path):
    main = [sys.executable, "-m", "tunerun.sprout", str(tmp_path)]
    subprocess.run(main, check=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "base" / name).read_bytes() == (SHIPPED / name).read_bytes()
