"""Compiles chat templates as transformers does (utils/chat_template_utils.py, `_compile_jinja_template`).

That is Jinja's immutable sandbox, `trim_blocks`, `lstrip_blocks`, loop controls, a `tojson` that neither escapes nor
sorts, `raise_exception`, `strftime_now` and the `{% generation %}` block. Only the date differs: it is given, so that
data stay the same tomorrow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tunerun.chat.faults import ChatFault
from tunerun.chat.template import Span, marks
from tunerun.errors import Problem, UserError

# Python errors out of a template's own expressions, such as adding null to a text or dividing by nothing.
_TEMPLATE_ERRORS = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)

# Private-use characters around what a `{% generation %}` block rendered; removed before anyone sees the text.
_OPEN, _CLOSE = "\U0010fdd0", "\U0010fdd1"


def check(source: str, where: str, date: datetime) -> None:
    """Checks that a template can be compiled.

    Args:
        source: Jinja source.
        where: The file, for messages.
        date: What `strftime_now` formats.

    Raises:
        UserError: It is not valid Jinja.
    """
    try:
        _compiled(source, date)
    except jinja2.TemplateSyntaxError as error:
        what = f"is not a valid chat template: {error.message}."
        raise UserError(Problem(where=f"{where}:{error.lineno}", what=what)) from error


def render(source: str, date: datetime, values: Mapping[str, Any]) -> tuple[str, list[Span]]:
    """Renders a template.

    Args:
        source: Jinja source.
        date: What `strftime_now` formats.
        values: What the template sees.

    Returns:
        The text, and character spans (start, end) of what its `{% generation %}` blocks made, in order.

    Raises:
        ChatFault: The template refuses the values or fails on them.
    """
    try:
        text = _compiled(source, date).render(values)
    except jinja2.TemplateError as error:
        raise ChatFault("template-refuses", f"the chat template refuses the conversation: {error}") from error
    except _TEMPLATE_ERRORS as error:
        what = f"{type(error).__name__}: {error}"
        raise ChatFault("template-refuses", f"the chat template fails on the conversation: {what}") from error
    return _unmarked(text) if marks(source) else (text, [])


def _unmarked(text: str) -> tuple[str, list[Span]]:
    clean: list[str] = []
    spans: list[Span] = []
    length = 0
    for number, part in enumerate(text.split(_OPEN)):
        marked, closed, rest = part.partition(_CLOSE) if number else ("", "", part)
        if closed:
            spans.append((length, length + len(marked)))
        clean += [marked, rest]
        length += len(marked) + len(rest)
    return "".join(clean), spans


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
def _compiled(source: str, date: datetime) -> jinja2.Template:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = date.strftime
    template = environment.from_string(source)
    # Jinja goes through these names for each rendering, which takes long with the chain of dicts that it makes.
    template.globals = dict(template.globals)
    return template


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
