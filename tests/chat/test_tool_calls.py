from __future__ import annotations

from pathlib import Path

import pytest

from tunerun.chat.tool_calls import tool_parser


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "parser"),
    [
        ("Qwen-Qwen2.5-7B-Instruct", "hermes"),
        ("Qwen-Qwen3-0.6B", "hermes"),
        ("meta-llama-Llama-3.2-3B-Instruct", "llama3_json"),
        ("mistralai-Mistral-Nemo-Instruct-2407", "mistral"),
        ("google-gemma-2-2b-it", None),
        ("microsoft-Phi-3.5-mini-instruct", None),
    ],
)
def test_the_tool_parser_is_guessed_from_public_templates(shared_dir: Path, name: str, parser: str | None) -> None:
    assert tool_parser((shared_dir / "templates" / f"{name}.jinja").read_text(encoding="utf-8")) == parser
