"""Chat templates: found in a model folder, and rendered exactly as transformers' `apply_chat_template` does."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tunerun.chat.tokenizer import TOKENIZER_CONFIG, read_object
from tunerun.errors import Problem, UserError

TEMPLATE = "chat_template.jinja"
SHIPPED = Path(__file__).with_name("templates")

# What `strftime_now` sees. Llama 3's templates carry this very day for engines without the function.
FROZEN_DATE = datetime(2024, 7, 26)  # noqa: DTZ001 (a calendar day, the same everywhere)

Message = Mapping[str, Any]
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template with the values it sees."""

    text: str
    """Jinja source."""
    tool_text: str | None
    """Source used when tools are given, for models that have a template of its own for them."""
    variables: Mapping[str, str]
    """Special tokens by name (`bos_token`, `eos_token`, ...)."""
    source: str
    """The file, or the name of a shipped template."""
    date: datetime = FROZEN_DATE
    """What `strftime_now` formats."""

    @property
    def sha256(self) -> str:
        """Hex digest over everything that decides a rendering."""
        parts = [self.text, self.tool_text, sorted(self.variables.items()), self.date.isoformat()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def render(
        self, messages: Sequence[Message], tools: Sequence[Any] | None = None, *, generation_prompt: bool = False
    ) -> str:
        """Renders a conversation.

        Args:
            messages: OpenAI chat messages.
            tools: Function definitions, or None.
            generation_prompt: Whether the text that opens an assistant turn follows the last message.

        Raises:
            ChatFault: The template refuses the conversation or fails on it.
        """
        return self._render(messages, tools, generation_prompt)[0]

    @property
    def has_markers(self) -> bool:
        """Whether the template marks what is trained by `{% generation %}` blocks."""
        return any(map(marks, filter(None, (self.text, self.tool_text))))

    def render_marked(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> tuple[str, list[Span]]:
        """Renders a conversation and says which characters its `{% generation %}` blocks made.

        Returns:
            The text, and character spans (start, end) in order.

        Raises:
            ChatFault: The template refuses the conversation or fails on it.
        """
        return self._render(messages, tools, False)

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, generation_prompt: bool
    ) -> tuple[str, list[Span]]:
        # Imported here: Jinja takes its time, and who only hands a template on does not need it.
        from tunerun.chat import jinja

        source = self.tool_text if tools is not None and self.tool_text is not None else self.text
        given = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": generation_prompt}
        return jinja.render(source, self.date, {**given, **self.variables})


def marks(source: str) -> bool:
    """Says whether a template's source has `{% generation %}` blocks."""
    return "endgeneration" in source


def without_generation_blocks(template: str) -> str:
    """Returns a template without `{% generation %}`, which only training knows.

    An `{% if true %}` takes its place: white space around a block tag is then handled as before.
    """
    opened = re.sub(r"\{%(-?)\s*generation\s*(-?)%\}", r"{%\1 if true \2%}", template)
    return re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", r"{%\1 endif \2%}", opened)


def load_template(
    folder: Path, variables: Mapping[str, str], override: str | None = None, date: datetime = FROZEN_DATE
) -> ChatTemplate | None:
    """Finds the chat template of a model.

    Args:
        folder: Model folder: `chat_template.jinja`, else `chat_template` in tokenizer_config.json.
        variables: The model's special tokens by name.
        override: Name of a shipped template or a Jinja file, used instead of the model's own.
        date: What `strftime_now` formats.

    Returns:
        The template, or None when the model has none and nothing was named.

    Raises:
        UserError: The named template does not exist, or the template is not valid Jinja.
    """
    if override is not None:
        text, tool_text, source = _named(override)
    else:
        found = _of_model(folder)
        if found is None:
            return None
        text, tool_text, source = found
    # Imported here: as above.
    from tunerun.chat import jinja

    for part in filter(None, (text, tool_text)):
        jinja.check(part, source, date)
    return ChatTemplate(text=text, tool_text=tool_text, variables=variables, source=source, date=date)


def shipped_names() -> list[str]:
    """Returns the names of the templates that come with tunerun."""
    return sorted(path.stem for path in SHIPPED.glob("*.jinja"))


def _named(override: str) -> tuple[str, None, str]:
    path = SHIPPED / f"{override}.jinja" if override in shipped_names() else Path(override)
    try:
        return path.read_text(encoding="utf-8"), None, str(override)
    except (OSError, UnicodeDecodeError) as error:
        fix = f"Name a Jinja file or one of: {', '.join(shipped_names())}."
        what = f"the chat template {override!r} cannot be read."
        raise UserError(Problem(where="model.chat_template", what=what, fix=fix)) from error


def _of_model(folder: Path) -> tuple[str, str | None, str] | None:
    path = folder / TEMPLATE
    if path.is_file():
        return path.read_text(encoding="utf-8"), None, str(path)
    config = folder / TOKENIZER_CONFIG
    value = read_object(config).get("chat_template")
    if isinstance(value, list):
        named = {item["name"]: item["template"] for item in value}
        return (named["default"], named.get("tool_use"), str(config)) if "default" in named else None
    return (value, None, str(config)) if isinstance(value, str) else None
