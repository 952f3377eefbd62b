"""A tiny random model of every architecture, with the kind of tokenizer that its family has."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from tests.export.models import SENTENCES, TEMPLATE, build_tokenizer, edit_json

SPACE = "▁"
SIZES: dict[str, Any] = {
    "vocab_size": 768,
    "hidden_size": 128,
    "intermediate_size": 288,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "long_factor": [1.0 + 0.1 * place for place in range(16)],
    "short_factor": [1.0 + 0.01 * place for place in range(16)],
}
GEMMA = {"head_dim": 64, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
SCALED = {"query_pre_attn_scalar": 64, "sliding_window": 32}

# Class, kind of tokenizer, and what its config has besides the sizes.
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", "bytes", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", "bytes", {"head_dim": 64, "tie_word_embeddings": True}),
    "llama2": ("Llama", "pieces", {}),
    "llama3": ("Llama", "llama3", {"rope_parameters": LLAMA3, "head_dim": 64, "tie_word_embeddings": True}),
    "llama-bias": ("Llama", "llama3", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", "pieces", {"sliding_window": None, "head_dim": 64}),
    "gemma": ("Gemma", "gemma", GEMMA),
    "gemma2": ("Gemma2", "gemma", GEMMA | SCALED),
    "gemma3": ("Gemma3Text", "gemma", GEMMA | SCALED | {"num_hidden_layers": 7}),
    "phi3": ("Phi3", "pieces", {"sliding_window": None, "pad_token_id": 0}),
    "phi3-long": (
        "Phi3",
        "pieces",
        {"rope_parameters": LONG, "original_max_position_embeddings": 128, "pad_token_id": 0, "sliding_window": 96},
    ),
}
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build_family(folder: Path, family: str, *, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Any:
    """Saves a random model of a family with its tokenizer; returns the model."""
    name, kind, extra = FAMILIES[family]
    folder.mkdir(parents=True, exist_ok=True)
    config = getattr(transformers, f"{name}Config")(**(SIZES | extra | changes))
    torch.manual_seed(0)
    model = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config).to(dtype).eval()
    for key, parameter in model.named_parameters():
        if parameter.ndim == 1:
            centre = 0.0 if name.startswith("Gemma") or "bias" in key else 0.7
            torch.nn.init.normal_(parameter.data, mean=centre, std=0.1)
    model.save_pretrained(folder)
    build_words(folder, kind, SIZES["vocab_size"])
    return model


def build_words(folder: Path, kind: str, vocab_size: int) -> None:
    """Saves a tokenizer: byte-level (`bytes`, `llama3`) or SentencePiece-like (`pieces`, `gemma`)."""
    if kind in ("pieces", "gemma"):
        build_pieces(folder, gemma=kind == "gemma", size=vocab_size - 20)
        return
    build_tokenizer(folder)
    if kind == "llama3":
        data = json.loads((folder / "tokenizer.json").read_text())
        data["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": LLAMA3_PATTERN}
        data["model"]["ignore_merges"] = True
        data["normalizer"] = None
        (folder / "tokenizer.json").write_text(json.dumps(data))


def build_pieces(folder: Path, *, gemma: bool, size: int) -> None:
    """Writes tokenizer.model and the tokenizer.json that transformers makes of it."""
    control = ["<pad>", "<eos>", "<bos>", "<unk>"] if gemma else ["<unk>", "<s>", "</s>"]
    chat = ["<start_of_turn>", "<end_of_turn>"] if gemma else ["<|user|>", "<|end|>"]
    words = _train_words(size - len(control) - 256)
    pieces = [(text, 0.0, 2 if text == "<unk>" else 3) for text in control]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    pieces += [(text, -float(place), 1) for place, text in enumerate(words)]
    trainer = _number(3, 2) + _number(35, 1)  # model_type BPE, byte_fallback
    ids = {40: "<unk>", 41: control[2] if gemma else "<s>", 42: control[1] if gemma else "</s>"}
    trainer += b"".join(_number(field, control.index(text)) for field, text in ids.items())
    trainer += b"".join(_message(field + 5, text.encode()) for field, text in ids.items())
    model = b"".join(_message(1, _piece(*piece)) for piece in pieces) + _message(2, trainer)
    (folder / "tokenizer.model").write_bytes(model)
    vocabulary = {text: number for number, (text, _, _) in enumerate(pieces)}
    scores = {text: score for text, score, kind in pieces if kind == 1}
    merges = _all_merges(scores, vocabulary)
    added = [_added(vocabulary[text], text, special=True) for text in control]
    added += [_added(len(pieces) + place, text, special=True) for place, text in enumerate(chat)]
    added.append(_added(len(pieces) + len(chat), "<tool_call>", special=False))
    bos = "<bos>" if gemma else "<s>"
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": _replace() if gemma else {"type": "Sequence", "normalizers": [_prepend(), _replace()]},
        "pre_tokenizer": None,
        "post_processor": _template(bos, vocabulary[bos]),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *([] if gemma else [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]),
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": "<eos>" if gemma else "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "chat_template": "{{ bos_token }}" + TEMPLATE.replace("<|im_start|>", chat[0]).replace("<|im_end|>", chat[1]),
        "added_tokens_decoder": {
            str(entry["id"]): {key: entry[key] for key in entry if key != "id"} for entry in added
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def forget_model_file(folder: Path) -> None:
    """Leaves only tokenizer.json of a SentencePiece tokenizer."""
    (folder / "tokenizer.model").unlink()
    edit_json(folder / "tokenizer_config.json", added_tokens_decoder={})


def _train_words(count: int) -> list[str]:
    """Words by rank: those of several letters in the order in which they were merged, then the letters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(" "), behavior="merged_with_next"),
            pre_tokenizers.Metaspace(prepend_scheme="never"),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=count, show_progress=False, special_tokens=[])
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    words = [text for text, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    letters = dict.fromkeys(
        [*(text for text in words if len(text) == 1), *"abcdefghijklmnopqrstuvwxyz ,.!?".replace(" ", SPACE)]
    )
    return [text for text in words if len(text) > 1] + [*letters]


def _all_merges(scores: dict[str, float], vocabulary: dict[str, int]) -> list[list[str]]:
    merges = []
    for text, score in scores.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in scores and right in scores:
                merges.append((-score, vocabulary[left], vocabulary[right], [left, right]))
    return [merge for *_, merge in sorted(merges)]


def _added(number: int, text: str, *, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": text, **flags, "special": special}


def _prepend() -> dict[str, Any]:
    return {"type": "Prepend", "prepend": SPACE}


def _replace() -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def _template(bos: str, number: int) -> dict[str, Any]:
    start = {"SpecialToken": {"id": bos, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": place}} for place, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [start, first],
        "pair": [start, first, {"SpecialToken": {"id": bos, "type_id": 1}}, second],
        "special_tokens": {bos: {"id": bos, "ids": [number], "tokens": [bos]}},
    }


def _piece(text: str, score: float, kind: int) -> bytes:
    encoded = text.encode()
    return _message(1, encoded) + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind])


def _message(field: int, content: bytes) -> bytes:
    return bytes(_varint(field << 3 | 2)) + bytes(_varint(len(content))) + content


def _number(field: int, value: int) -> bytes:
    return bytes(_varint(field << 3)) + bytes(_varint(value))


def _varint(value: int) -> Iterable[int]:
    while value >= 0x80:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value


def build_internlm2(folder: Path) -> Any:
    """Saves a Llama's weights under InternLM2's names, its query, key and value rows fused; returns the Llama."""
    model = build_family(folder, "llama2", dtype=torch.float32)
    queries, size = 2, 32
    tensors = {}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for layer in range(SIZES["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        query, key, value = (state.pop(f"{prefix}self_attn.{part}_proj.weight") for part in "qkv")
        groups = [part.reshape(2, count * size, -1) for part, count in ((query, queries), (key, 1), (value, 1))]
        tensors[f"{prefix}attention.wqkv.weight"] = torch.cat(groups, dim=1).reshape(-1, query.shape[1]).contiguous()
    for name, tensor in state.items():
        for theirs, ours in INTERNLM2_NAMES.items():
            name = name.replace(theirs, ours)
        tensors[name] = tensor
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    edit_json(folder / "config.json", architectures=["InternLM2ForCausalLM"], model_type="internlm2", head_dim=None)
    return model


INTERNLM2_NAMES = {
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
