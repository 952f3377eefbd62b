"""serve.json of every version is read, and what was written before is written the same today."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tunerun.errors import UserError
from tunerun.formats.handoff import SCHEMA, Handoff, Rendering, read_handoff, write_handoff

GOLDEN = Path(__file__).with_name("golden")
HANDOFF = Handoff(
    default="demo-q4_k_m.gguf",
    files={"q4_k_m": "demo-q4_k_m.gguf", "f16": "demo-f16.gguf"},
    context=512,
    stops=("<|im_end|>",),
    template="chat_template.jinja",
    template_sha256="7c4ff86a1e0b7c55ea0e2d1a9b5ab9a6c0ac5a7e6c3b1b0f2f9f6f5d7d3c2b1a",
    tool_parser="hermes",
    system="Be kind.",
    ollama=Rendering(file="Modelfile.go-template"),
    lmdeploy=Rendering(reason="LMDeploy cannot."),
)


def test_the_record_is_written_as_it_always_was(tmp_path: Path) -> None:
    write_handoff(tmp_path / "serve.json", HANDOFF)
    assert (tmp_path / "serve.json").read_text() == (GOLDEN / f"serve-{SCHEMA}.json").read_text()


@pytest.mark.parametrize("schema", range(1, SCHEMA + 1))
def test_records_of_every_version_are_read(schema: int) -> None:
    found = read_handoff(GOLDEN / f"serve-{schema}.json")
    for name in ("default", "files", "context", "stops", "template_sha256", "tool_parser"):
        assert getattr(found, name) == getattr(HANDOFF, name)
    assert (found == HANDOFF) == (schema > 1)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ("{}", "is damaged"),
        ('{"schema": 4}', f"was written by a newer tunerun (schema 4, this one reads up to {SCHEMA})"),
        ('{"schema": "2"}', "is damaged"),
        ('{"schema": 2, "default": 7}', "files: is missing"),
    ],
)
def test_a_record_that_cannot_be_read_says_why(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "serve.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(what)):
        read_handoff(tmp_path / "serve.json")


def test_an_unknown_key_is_refused(tmp_path: Path) -> None:
    data = json.loads((GOLDEN / "serve-2.json").read_text()) | {"colour": "red"}
    (tmp_path / "serve.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="colour"):
        read_handoff(tmp_path / "serve.json")
