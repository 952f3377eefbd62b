"""How chat templates have models write tool calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolFormat:
    """The way a family of models writes tool calls."""

    opening: str
    """Stands before a call; a special token in some tokenizers."""
    closing: str = ""
    """Stands after a call."""
    arguments: str = "arguments"
    """Key of the arguments, beside `name`."""
    array: bool = False
    """Whether a list of calls follows the opening, and not a single one."""
    bare: bool = False
    """Whether an answer that is a call may do without the opening."""


# By vLLM's `--tool-call-parser`.
TOOL_FORMATS: Mapping[str, ToolFormat] = {
    "hermes": ToolFormat(opening="<tool_call>", closing="</tool_call>"),
    "mistral": ToolFormat(opening="[TOOL_CALLS]", array=True),
    "llama3_json": ToolFormat(opening="<|python_tag|>", arguments="parameters", bare=True),
}


def tool_parser(template: str) -> str | None:
    """Names the way a template writes tool calls, as vLLM's `--tool-call-parser` calls it; None when it has none."""
    for name, form in TOOL_FORMATS.items():
        if form.opening in template:
            return name
    # Llama 3.2's small models write the call as plain JSON, after an `Environment: ipython` line.
    return "llama3_json" if "ipython" in template and '"parameters"' in template else None
