"""The model folder without weights: configuration, tokenizer and chat template."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from tunerun.artifacts import write_json, write_text
from tunerun.sprout.tokenizer import END_OF_TEXT, TURN_END, TURN_START, VOCABULARY_SIZE

_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
_CONTEXT_TOKENS = 2048


def write_base(folder: Path, tokenizer: Tokenizer) -> None:
    """Writes config.json, generation_config.json, tokenizer.json, tokenizer_config.json and chat_template.jinja.

    Args:
        folder: Created where it is missing.
        tokenizer: As trained by `train_tokenizer`.
    """
    padding, ends = tokenizer.token_to_id(END_OF_TEXT), tokenizer.token_to_id(TURN_END)
    write_json(folder / "config.json", _model_config(padding, ends))
    write_json(
        folder / "generation_config.json",
        {"do_sample": False, "eos_token_id": [ends, padding], "pad_token_id": padding},
    )
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "additional_special_tokens": [TURN_START, TURN_END],
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": TURN_END,
            "model_max_length": _CONTEXT_TOKENS,
            "pad_token": END_OF_TEXT,
            "unk_token": None,
        },
    )
    write_text(folder / "chat_template.jinja", _TEMPLATE.read_text(encoding="utf-8"))


def _model_config(padding: int | None, ends: int | None) -> dict[str, object]:
    # Row lengths of every matrix are multiples of 256, the block of llama.cpp's K-quants.
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "dtype": "bfloat16",
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": _CONTEXT_TOKENS,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        # 1 / sqrt(hidden_size): with the usual 0.02 the attention of so narrow a model stays even for long.
        "initializer_range": 0.0625,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "use_cache": True,
        "bos_token_id": padding,
        "eos_token_id": ends,
        "pad_token_id": padding,
    }
