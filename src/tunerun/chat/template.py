"""Renders chat templates exactly as transformers' `apply_chat_template` does, without transformers.

The environment is transformers' (utils/chat_template_utils.py, `_compile_jinja_template`): Jinja's immutable sandbox,
`trim_blocks`, `lstrip_blocks`, loop controls, a `tojson` that neither escapes nor sorts, `raise_exception`,
`strftime_now` and the `{% generation %}` block. Only the date differs: it is frozen, so that data stay the same
tomorrow.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tunerun.chat.faults import ChatFault
from tunerun.chat.tokenizer import TOKENIZER_CONFIG, read_object
from tunerun.errors import Problem, UserError

TEMPLATE = "chat_template.jinja"
SHIPPED = Path(__file__).with_name("templates")

# What `strftime_now` sees. Llama 3's templates carry this very day for engines without the function.
FROZEN_DATE = datetime(2024, 7, 26)  # noqa: DTZ001 (a calendar day, the same everywhere)

Message = Mapping[str, Any]
Span = tuple[int, int]

# Python errors out of a template's own expressions, such as adding null to a text or dividing by nothing.
_TEMPLATE_ERRORS = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)

# Private-use characters around what a `{% generation %}` block rendered; removed before anyone sees the text.
_OPEN, _CLOSE = "\U0010fdd0", "\U0010fdd1"


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
        text = self._render(messages, tools, generation_prompt)
        return text.replace(_OPEN, "").replace(_CLOSE, "") if self.has_markers else text

    @property
    def has_markers(self) -> bool:
        """Whether the template marks what is trained by `{% generation %}` blocks."""
        return "endgeneration" in self.text + (self.tool_text or "")

    def render_marked(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> tuple[str, list[Span]]:
        """Renders a conversation and says which characters its `{% generation %}` blocks made.

        Returns:
            The text, and character spans (start, end) in order.

        Raises:
            ChatFault: The template refuses the conversation or fails on it.
        """
        clean: list[str] = []
        spans: list[Span] = []
        length = 0
        for number, part in enumerate(self._render(messages, tools, False).split(_OPEN)):
            marked, closed, rest = part.partition(_CLOSE) if number else ("", "", part)
            if closed:
                spans.append((length, length + len(marked)))
            clean += [marked, rest]
            length += len(marked) + len(rest)
        return "".join(clean), spans

    def _render(self, messages: Sequence[Message], tools: Sequence[Any] | None, generation_prompt: bool) -> str:
        source = self.tool_text if tools is not None and self.tool_text is not None else self.text
        template, names = _compiled(source, self.date)
        seen = {
            **names,
            **self.variables,
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": generation_prompt,
        }
        try:
            # What `Template.render` does, without copying the environment's names once more for each conversation.
            return "".join(template.root_render_func(template.new_context(seen, shared=True)))
        except jinja2.TemplateError as error:
            raise ChatFault("template-refuses", f"the chat template refuses the conversation: {error}") from error
        except _TEMPLATE_ERRORS as error:
            what = f"{type(error).__name__}: {error}"
            raise ChatFault("template-refuses", f"the chat template fails on the conversation: {what}") from error


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
    for part in (text, tool_text):
        try:
            if part is not None:
                _compiled(part, date)
        except jinja2.TemplateSyntaxError as error:
            what = f"is not a valid chat template: {error.message}."
            raise UserError(Problem(where=f"{source}:{error.lineno}", what=what)) from error
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


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`: puts marks around what the block renders."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's interface)

    def parse(self, parser: Parser) -> nodes.Node:
        """Turns the block into a call of `_mark`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    @staticmethod
    def _mark(caller: Callable[[], str]) -> str:
        return f"{_OPEN}{caller()}{_CLOSE}"


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which finds the fields of messages sooner."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Returns `obj.attribute`: of a dict its item, as Jinja does once it has found no such attribute."""
        if type(obj) is dict and attribute not in _DICT_ATTRIBUTES:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)


_DICT_ATTRIBUTES = frozenset(dir(dict))


@cache
def _compiled(source: str, date: datetime) -> tuple[jinja2.Template, dict[str, Any]]:
    """Returns the template and the names that its environment gives it."""
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = date.strftime
    template = environment.from_string(source)
    return template, dict(template.globals)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
