"""export/serve.json: what a server has to know of a model besides its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunerun import artifacts
from tunerun.config import typed
from tunerun.errors import Problem, UserError

HANDOFF = "serve.json"
SCHEMA = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendering:
    """The chat template in the form of another engine."""

    file: str | None = None
    """Beside serve.json; null when there is none."""
    reason: str = ""
    """Why there is none, or in what the file differs from the chat template."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Handoff:
    """What the export stage tells servers."""

    default: str | None
    """GGUF file that is served when nothing else is asked for; null when none was written."""
    files: Mapping[str, str]
    """GGUF files by llama.cpp type."""
    context: int
    """Tokens to serve with when nothing else is asked for."""
    stops: tuple[str, ...]
    """Texts of the tokens that end an answer."""
    template: str | None
    """File with the chat template, for vLLM's `--chat-template`; null for a model without one."""
    template_sha256: str | None
    """Of that file, which is also what the GGUF files hold."""
    tool_parser: str | None
    """How the template writes tool calls, as vLLM's `--tool-call-parser` names it."""
    system: str | None = None
    """System prompt that the model was trained with, when it is one."""
    ollama: Rendering = Rendering()
    """Modelfile with a Go template, for releases that do not render the GGUF's own."""
    lmdeploy: Rendering = Rendering()
    """For LMDeploy's `--chat-template`."""


def write_handoff(path: Path, handoff: Handoff) -> None:
    """Writes serve.json."""
    artifacts.write_json(path, {"schema": SCHEMA, **typed.plain(handoff)})


def read_handoff(path: Path) -> Handoff:
    """Reads serve.json of this version or an older one.

    Raises:
        UserError: It is damaged, or was written by a newer tunerun.
    """
    schema, data = artifacts.read_versioned(path, SCHEMA)
    handoff, problems = typed.build(Handoff, _migrated(data, schema))
    if handoff is None or problems:
        raise UserError([Problem(where=f"{path}: {item.where}", what=item.what, fix=item.fix) for item in problems])
    return handoff


def _migrated(data: dict[str, Any], schema: int) -> dict[str, Any]:
    # Schema 1 wrote no file of the chat template.
    return {**data, "template": None} if schema == 1 else data
