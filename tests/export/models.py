"""Tiny Qwen2 models with a small byte-level BPE tokenizer, built from a seed."""

import json
from pathlib import Path

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
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"add_bos_token": False}))
    return len(fast)


def build_model(
    folder: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    tied: bool = True,
    hidden: int = 256,
    intermediate: int = 512,
    layers: int = 3,
    vocab: int = 448,
    seed: int = 0,
    **config,
) -> Qwen2ForCausalLM:
    """Saves a random model with its tokenizer; the embedding has more rows than there are tokens."""
    tokens = build_tokenizer(folder)
    assert tokens < vocab
    torch.manual_seed(seed)
    shape = dict(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    model = Qwen2ForCausalLM(Qwen2Config(**(shape | config))).to(dtype).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter.data, mean=0.5, std=0.1)
    model.save_pretrained(folder)
    return model
