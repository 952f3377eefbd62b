"""A seeded tiny Qwen2 with a byte-level tokenizer, built in a moment, for tests of anything that needs a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Qwen2's pre-tokenizer pattern (tokenizer.json of any Qwen2 model).
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT = (
    "The quick brown fox jumps over the lazy dog. Who are you? I am a small model.",
    "system user assistant What is one plus one? It is two. 你好，世界。你是谁？我是一个小模型。",
)


def tiny_tokenizer(folder: Path, *, template: str | None = CHATML) -> None:
    """Writes tokenizer.json and tokenizer_config.json: byte-level BPE of 320 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=317, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def tiny_qwen2(folder: Path, seed: int = 0, *, template: str | None = CHATML, **config: Any) -> Path:
    """Writes a complete model folder: a Qwen2 of 2 layers, hidden 64, 4 heads over 2 key heads, 320 tokens."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tiny_tokenizer(folder, template=template)
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "eos_token_id": vocabulary - 1,
        "bos_token_id": None,
        "pad_token_id": vocabulary - 3,
        **config,
    }
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(**sizes)).to(torch.float32)
    # The default initialisation (0.02) leaves such a small model indifferent to its input.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5.0)
    model.save_pretrained(folder)
    return folder


def write_store(folder: Path, rows: list[list[tuple[list[int], list[int]]]], *, packed: bool = False) -> Path:
    """Writes a token store: rows of samples of (tokens, trained flags)."""
    from tunerun.formats.tokens import TokenWriter

    with TokenWriter(folder) as writer:
        for row in rows:
            writer.add(*[(np.array(tokens), np.array(trained)) for tokens, trained in row])
        writer.finish(objective="sft", tokenizer_sha256="0", template_sha256=None, max_length=256, packed=packed)
    return folder


def random_samples(count: int, *, vocabulary: int = 320, longest: int = 24, seed: int = 0) -> list[Any]:
    """Returns samples of (tokens, trained flags): the second half of each is trained."""
    generator = np.random.default_rng(seed)
    samples = []
    for _ in range(count):
        length = int(generator.integers(4, longest))
        tokens = generator.integers(0, vocabulary - 3, length).tolist()
        samples.append((tokens, [int(index >= length // 2) for index in range(length)]))
    return samples
