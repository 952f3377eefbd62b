"""How text is split, for vocabularies that llama.cpp's converter does not know: by pattern, and as in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.export.conftest import export, open_model
from tests.export.families import LLAMA3_PATTERN, build_family
from tests.export.models import PATTERN
from tunerun.chat.tokenizer import load_tokenizer

llama_cpp = pytest.importorskip("llama_cpp")

TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = TEKKEN.replace(r"]+|[^", r"]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^", 1).replace(
    r"]*|\p{N}|", r"]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|"
)
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
WORDS = BYTES | {"use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
TEXTS = [
    "How many apples are 3 and 4? They're 7, isn't it? IT'S FINE, We'Ll see.",
    "  two  spaces\n\n\ttab 1234567 3.14 x=1e-9;\r\n\r\n  end  ",
    "HTTPServer parseXML camelCase ---->//comment\n/path/to",
    "你好，世界！今天天气怎么样？ нещо на",
    '<tool_call>{"a": [1, 22, 333]}',
]


def splits(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, BYTES]}


CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "qwen2": (splits(PATTERN), False),
    "qwen35": (splits(QWEN35), False),
    "llama-bpe": (splits(LLAMA3_PATTERN), True),
    "dbrx": (splits(LLAMA3_PATTERN), False),
    "tekken": (splits(TEKKEN), True),
    "gpt-4o": (splits(GPT4O), False),
    "gpt-2": (WORDS, False),
    "smollm": ({"type": "Sequence", "pretokenizers": [DIGITS, WORDS]}, False),
}


@pytest.mark.parametrize("name", CASES)
def test_a_home_made_vocabulary_is_split_as_in_transformers(name: str, tmp_path: Path) -> None:
    build_family(tmp_path, "qwen2")
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    data["pre_tokenizer"], data["model"]["ignore_merges"] = CASES[name]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    assert open_model(tmp_path).vocabulary.pre_tokenizer == name
    path = export(tmp_path, tmp_path / "out", ["q8_0"])["q8_0"]
    loaded = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    backend = load_tokenizer(tmp_path).backend
    for text in TEXTS:
        assert loaded.tokenize(text.encode(), add_bos=False, special=True) == backend.encode(text).ids, text
    loaded.close()
