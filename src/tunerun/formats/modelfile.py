"""Ollama's Modelfile: written, and read as Ollama reads it (parser/parser.go).

Ollama drops characters that Go does not call printed, and ends a text in triple quotes at the first line that ends with
three of them. What would not come back as it was written is left out, with a comment in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunerun.chat.go_template import is_printed

MODELFILE = "Modelfile"
# For releases before REQUIRES and before the GGUF's own chat template was rendered.
OLDER_MODELFILE = "Modelfile.go-template"


@dataclass(frozen=True, kw_only=True, slots=True)
class Modelfile:
    """What a Modelfile says."""

    weights: str
    """GGUF file, relative to the Modelfile."""
    parameters: tuple[tuple[str, str], ...] = ()
    """Names and values; `stop` may come several times."""
    system: str | None = None
    """System prompt of conversations without one."""
    template: str | None = None
    """Go template; None leaves it to the one inside the GGUF."""
    requires: str | None = None
    """Oldest release of Ollama."""

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer."""
        return tuple(value for name, value in self.parameters if name == "stop")

    def lost(self) -> tuple[str, ...]:
        """Names what Ollama would not read as it is written."""
        parts = [(f"PARAMETER {name}", value) for name, value in self.parameters]
        parts += [("SYSTEM", self.system or ""), ("TEMPLATE", self.template or "")]
        return tuple(name for name, value in parts if not _survives(value))


def write_modelfile(content: Modelfile, comments: Sequence[str] = ()) -> str:
    """Lays a Modelfile out.

    Args:
        content: What it says.
        comments: Lines for the reader, put first.
    """
    lines = [f"# {comment}" for comment in comments]
    if content.requires is not None:
        lines.append(f"REQUIRES {content.requires}")
    lines.append(f"FROM ./{content.weights}")
    lines += [_line(f"PARAMETER {name}", value, bare=value.isdigit()) for name, value in content.parameters]
    if content.system is not None:
        lines.append(_line("SYSTEM", content.system))
    if content.template is not None:
        lines.append(_line("TEMPLATE", content.template))
    return "\n".join(lines) + "\n"


def read_modelfile(text: str) -> Modelfile:
    """Reads a Modelfile that `write_modelfile` wrote, as Ollama would.

    Raises:
        ValueError: It has no FROM line, or a text in quotes does not end.
    """
    found: dict[str, Any] = {}
    parameters = []
    lines = iter(text.splitlines(keepends=True))
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        name, _, value = line.partition(" ")
        if name == "PARAMETER":
            key, _, value = value.partition(" ")
        while not _ends(value):
            following = next(lines, None)
            if following is None:
                raise ValueError(f"the text of {name} does not end")
            value += following
        content = _unquoted("".join(letter for letter in value if is_printed(letter)))
        if name == "PARAMETER":
            parameters.append((key, content))
        else:
            found[name] = content
    return Modelfile(
        weights=_weights(found),
        parameters=tuple(parameters),
        system=found.get("SYSTEM"),
        template=found.get("TEMPLATE"),
        requires=found.get("REQUIRES"),
    )


def _weights(found: Mapping[str, str]) -> str:
    if "FROM" not in found:
        raise ValueError("there is no FROM line")
    return found["FROM"].removeprefix("./")


def _survives(value: str) -> bool:
    return '"""' not in value and all(is_printed(letter) for letter in value)


def _line(name: str, value: str, *, bare: bool = False) -> str:
    if not _survives(value):
        return f"# {name} is left out: Ollama's reader would change {value!r}"
    if bare:
        return f"{name} {value}"
    return f'{name} """{value}"""' if '"' in value or "\n" in value else f'{name} "{value}"'


def _quotes(value: str) -> str:
    return next((quotes for quotes in ('"""', '"') if value.startswith(quotes)), "")


def _ends(value: str) -> bool:
    text = value.strip()
    quotes = _quotes(text)
    return not quotes or (len(text) >= 2 * len(quotes) and text.endswith(quotes))


def _unquoted(value: str) -> str:
    text = value.strip()
    quotes = len(_quotes(text))
    return text[quotes : len(text) - quotes]
