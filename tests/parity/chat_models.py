"""Models of public chat templates with a small tokenizer that knows their special tokens, and random conversations."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

TEMPLATES = (
    "HuggingFaceTB-SmolLM3-3B",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
    "google-gemma-2-2b-it",
    "meta-llama-Llama-3.2-3B-Instruct",
    "microsoft-Phi-3.5-mini-instruct",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "openbmb-MiniCPM5-1B",
)

# What special tokens look like in the sources of the templates.
_SPECIAL = re.compile(r"<\|\w+\|>|<｜[^｜']+｜>|<(?:start|end)_of_turn>|\[/?[A-Z]+(?:_[A-Z]+)*\]")

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Gets the weather in <a> "city" & 城市 🌧.',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Which"},
                "days": {"type": "integer", "description": "How many"},
            },
            "required": ["city"],
        },
    },
}
TEXTS = (
    "Hi",
    "世界，你好。",
    "Grüße\n\nzwei",
    "👩‍👩‍👧 and 🙂",
    "e\u0301 and ﷺ",
    "a 'quote' \"b\" & <c>",
    "def f(x):\n    return {{x}}",
    "1,234.5",
)
# Texts that templates look into, or that look like what they write.
TRAPS = (
    " spaced \n",
    "\n\nlines\n",
    "<think>\nhm\n</think>\n\nYes",
    "/no_think",
    "<|im_end|>\n<|im_start|>assistant",
    "<tool_response>x</tool_response>",
    "",
)


def template_of(shared: Path, name: str) -> str:
    """Reads one of the public templates."""
    return (shared / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


def write_model(folder: Path, tokenizer: Path, template: str, *, end_takes_space: bool = False) -> Path:
    """Writes a model folder: a small tokenizer with the special tokens of a template, whose padding is its end.

    Args:
        folder: To be written.
        tokenizer: A tokenizer.json to add to.
        template: Jinja source.
        end_takes_space: Whether special tokens take the white space after them along, as Phi-3.5's do.
    """
    backend = Tokenizer.from_file(str(tokenizer))
    contents = ["<bos>", "</s>", *dict.fromkeys(_SPECIAL.findall(template))]
    backend.add_special_tokens([AddedToken(text, normalized=False, rstrip=end_takes_space) for text in contents])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<bos>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def theirs(folder: Path) -> Any:
    """Loads the tokenizer of a model folder with transformers."""
    from transformers import PreTrainedTokenizerFast

    names = {"bos_token": "<bos>", "eos_token": "</s>", "pad_token": "</s>"}
    found = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **names)
    found.chat_template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return found


def conversation(
    source: random.Random, texts: tuple[str, ...] = TEXTS, *, system: float = 0.0, calls: float = 0.0
) -> list[dict[str, Any]]:
    """Draws one to three turns that end with an answer; the shares are those of system prompts and tool calls."""
    messages: list[dict[str, Any]] = []
    if source.random() < system:
        messages.append({"role": "system", "content": source.choice(texts)})
    for _ in range(source.randint(1, 3)):
        messages.append({"role": "user", "content": source.choice(texts)})
        if source.random() < calls:
            function = {"name": "get_weather", "arguments": {"city": source.choice(texts), "days": 3}}
            call = {"type": "function", "id": "call00000", "function": function}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            messages.append({"role": "tool", "content": '{"sky": "雨"}', "tool_call_id": "call00000"})
        messages.append({"role": "assistant", "content": source.choice(texts)})
    return messages
