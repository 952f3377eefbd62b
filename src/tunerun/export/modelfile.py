"""What is written beside the GGUF files: an Ollama Modelfile and serve.json."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from tunerun.export.special import tool_parser

# The first release that renders the GGUF's own Jinja template, so that none has to be translated here.
OLLAMA_VERSION = "0.30.11"


def render_modelfile(file: str, *, stops: Sequence[str], context_tokens: int) -> str:
    """Writes a Modelfile; the chat template is the one inside the GGUF.

    Args:
        file: Name of the GGUF beside the Modelfile.
        stops: Texts that end an answer.
        context_tokens: Ollama's own default is far below what models can do.
    """
    lines = [f"REQUIRES {OLLAMA_VERSION}", f"FROM ./{file}", f"PARAMETER num_ctx {context_tokens}"]
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops]
    return "\n".join(lines) + "\n"


def serve_facts(
    files: Mapping[str, str], *, template: str | None, stops: Sequence[str], context_tokens: int
) -> dict[str, Any]:
    """Collects what a server needs besides the file: serve.json, schema 1.

    Args:
        files: Names of the GGUF files by type; the first is the default.
        template: The chat template inside them, if any.
        stops: Texts that end an answer.
        context_tokens: To serve with when nothing else is asked for.
    """
    return {
        "schema": 1,
        "default": next(iter(files.values())),
        "files": dict(files),
        "context": context_tokens,
        "stops": list(stops),
        "template_sha256": hashlib.sha256(template.encode()).hexdigest() if template is not None else None,
        "tool_parser": tool_parser(template) if template is not None else None,
    }


def _quoted(text: str) -> str:
    return f'"""{text}"""' if '"' in text else f'"{text}"'
