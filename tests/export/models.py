"""Tiny Qwen2 models with a small byte-level BPE tokenizer, built from a seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "How many apples are 3 and 4? They're 7, isn't it?",
    "你好，世界！今天天气怎么样？",
    "Bonjour à tous; naïve café.\n\n\tdef main():\n    return 42",
]
SHAPE = {
    "vocab_size": 448,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "initializer_range": 0.3,
}


def build_tokenizer(folder: Path, *, template: str | None = TEMPLATE, eos: str = "<|im_end|>") -> int:
    """Trains a tokenizer of about 400 tokens on a few sentences; returns the number of tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, special_tokens=[]
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("<|fim|>", normalized=False)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, pad_token="<|endoftext|>")
    fast.chat_template = template
    fast.save_pretrained(folder)
    edit_json(folder / "tokenizer_config.json", add_bos_token=False)
    return len(fast)


def build_model(folder: Path, *, dtype: torch.dtype = torch.bfloat16, seed: int = 0, **shape: Any) -> Qwen2ForCausalLM:
    """Saves a random model with its tokenizer; the embedding has more rows than there are tokens."""
    config = Qwen2Config(**(SHAPE | shape))
    assert build_tokenizer(folder) < config.vocab_size
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config).to(dtype).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter.data, mean=0.5, std=0.1)
    model.save_pretrained(folder)
    return model


def edit_json(file: Path, **fields: Any) -> None:
    """Sets top-level fields of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
