"""Go templates (text/template) as Ollama renders them: written from a frame, and rendered to prove them.

Ollama puts the system prompts into `.System` and all messages into `.Messages` (template/template.go, `Execute`). Only
what `from_frame` writes is rendered here: actions without trim markers, variables, `if`, `else if`, `range` over
messages, and the functions below. The tests render the same templates with Go.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunerun.chat.faults import ChatFault
from tunerun.chat.frame import Frame
from tunerun.chat.template import Message

_ACTION = re.compile(r'\{\{((?:[^"}]|"(?:[^"\\]|\\.)*"|\}(?!\}))*)\}\}')
_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|:=|[(),]|[$\w.]+)')
_ESCAPE = re.compile(r"\\(U([0-9a-f]{8})|.)")
# Braces that would open an action, quotes that would end a Modelfile's text.
_SPECIAL = re.compile(r'\{+|"{3,}|.', re.DOTALL)

Value = Any


def from_frame(frame: Frame) -> str:
    """Writes a frame as Ollama's template.

    A conversation that ends with an answer leaves it open, as Ollama's own templates do. Where the chat template
    refuses a system prompt this one fails with the reason, too.
    """
    last = "{{ $last := eq (len (slice $.Messages $i)) 1 }}"
    inserted, opening = "", literal(frame.opening)
    if frame.system is None:
        refusal = '{{ call "the chat template of this model takes no system prompt" }}'
        opening = _if(_STARTS_WITH_SYSTEM, refusal) + opening
    else:
        written = f"{literal(frame.system.before)}{{{{ $.System }}}}{literal(frame.system.after)}"
        system = _if("$.System", written, literal(frame.system.empty))
        if frame.system.place == "first":
            opening = _if(_STARTS_WITH_SYSTEM, system, opening)
        else:
            inserted = _if(f"and $last {_STARTS_WITH_SYSTEM}", system)
    after = literal(frame.answer)
    if frame.prompt != frame.answer:
        after = _if("$last", literal(frame.prompt), after)
    question = f"{inserted}{{{{ $m.Content }}}}{after}"
    answer = "{{ $m.Content }}" + _if("not $last", literal(frame.following))
    turn = f'{{{{ if eq $m.Role "user" }}}}{question}{{{{ else if eq $m.Role "assistant" }}}}{answer}{{{{ end }}}}'
    return f"{opening}{{{{ range $i, $m := .Messages }}}}{last}{turn}{{{{ end }}}}"


_STARTS_WITH_SYSTEM = '(eq (index $.Messages 0).Role "system")'


def literal(text: str) -> str:
    """Writes text so that neither the template's nor the Modelfile's reader sees anything in it."""
    return "".join(
        found if len(found) == 1 and found != "{" and is_printed(found) else f"{{{{ {_quoted(found)} }}}}"
        for found in _SPECIAL.findall(text)
    )


def is_printed(character: str) -> bool:
    """Says whether Ollama's reader of Modelfiles keeps a character (parser/parser.go: Go's `strconv.IsPrint`)."""
    return character in " \t\r\n" or unicodedata.category(character)[0] in "LMNPS"


def render(source: str, messages: Sequence[Message]) -> str:
    """Renders a conversation as Ollama does.

    Args:
        source: A template as `from_frame` writes it.
        messages: Of roles system, user and assistant.

    Raises:
        ChatFault: The template fails on the conversation, or is not of the kind that is rendered here.
    """
    nodes = _parse(source)
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    data = {"System": system, "Messages": [{"Role": item["role"], "Content": item["content"]} for item in messages]}
    try:
        return _execute(nodes, {"$": data}, data)
    except (IndexError, KeyError, TypeError) as error:
        raise ChatFault("template-refuses", f"the Go template fails on the conversation: {error}") from error


@dataclass(frozen=True, slots=True)
class _Print:
    expression: list[str]


@dataclass(frozen=True, slots=True)
class _Set:
    name: str
    expression: list[str]


@dataclass(frozen=True, slots=True)
class _If:
    condition: list[str]
    then: list[_Node]
    otherwise: list[_Node]


@dataclass(frozen=True, slots=True)
class _Range:
    index: str
    item: str
    expression: list[str]
    body: list[_Node]


_Node = str | _Print | _Set | _If | _Range


def _parse(source: str) -> list[_Node]:
    # Texts at even places, actions at odd ones.
    pieces: list[str | list[str]] = []
    position = 0
    for match in _ACTION.finditer(source):
        pieces += [source[position : match.start()], _tokens(match[1])]
        position = match.end()
    rest = source[position:]
    if "{{" in rest:
        raise ChatFault("not-expressible", f"this Go template is not understood from {rest[:40]!r} on.")
    nodes, end = _nodes([*pieces, rest], 0)
    if end != len(pieces) + 1:
        raise ChatFault("not-expressible", "this Go template has an `end` too many.")
    return nodes


def _tokens(action: str) -> list[str]:
    found = _TOKEN.findall(action)
    if _TOKEN.sub("", action).strip() or not found:
        raise ChatFault("not-expressible", f"the action {{{{{action}}}}} of this Go template is not understood.")
    return list(found)


def _nodes(pieces: Sequence[str | list[str]], start: int) -> tuple[list[_Node], int]:
    """Reads nodes up to an `else` or `end`, whose place is returned, or to the end of the pieces."""
    nodes: list[_Node] = []
    place = start
    while place < len(pieces):
        piece = pieces[place]
        if isinstance(piece, str):
            nodes.append(piece)
        elif piece[0] in ("else", "end"):
            return nodes, place
        elif piece[0] == "if":
            node, place = _if_node(pieces, place, piece[1:])
            nodes.append(node)
        elif piece[0] == "range":
            # range $i, $m := EXPRESSION
            body, place = _nodes(pieces, place + 1)
            nodes.append(_Range(piece[1], piece[3], piece[5:], body))
        elif piece[1:2] == [":="]:
            nodes.append(_Set(piece[0], piece[2:]))
        else:
            nodes.append(_Print(piece))
        place += 1
    return nodes, place


def _if_node(pieces: Sequence[str | list[str]], place: int, condition: list[str]) -> tuple[_If, int]:
    then, place = _nodes(pieces, place + 1)
    otherwise: list[_Node] = []
    if place < len(pieces) and pieces[place] != ["end"]:
        branch = pieces[place]
        if branch == ["else"]:
            otherwise, place = _nodes(pieces, place + 1)
        else:
            node, place = _if_node(pieces, place, list(branch[2:]))
            otherwise = [node]
    if place >= len(pieces):
        raise ChatFault("not-expressible", "an `if` of this Go template has no `end`.")
    return _If(condition, then, otherwise), place


def _execute(nodes: Sequence[_Node], variables: dict[str, Value], dot: Value) -> str:
    parts = []
    for node in nodes:
        if isinstance(node, str):
            parts.append(node)
        elif isinstance(node, _Print):
            parts.append(str(_evaluate(node.expression, variables, dot)))
        elif isinstance(node, _Set):
            variables[node.name] = _evaluate(node.expression, variables, dot)
        elif isinstance(node, _If):
            branch = node.then if _evaluate(node.condition, variables, dot) else node.otherwise
            parts.append(_execute(branch, dict(variables), dot))
        else:
            for index, item in enumerate(_evaluate(node.expression, variables, dot)):
                inner = {**variables, node.index: index, node.item: item}
                parts.append(_execute(node.body, inner, item))
    return "".join(parts)


def _evaluate(tokens: Sequence[str], variables: Mapping[str, Value], dot: Value) -> Value:
    value, end = _command(tokens, 0, variables, dot)
    if end != len(tokens):
        raise ChatFault("not-expressible", f"{' '.join(tokens)} in this Go template is not understood.")
    return value


def _command(tokens: Sequence[str], start: int, variables: Mapping[str, Value], dot: Value) -> tuple[Value, int]:
    """Evaluates `function argument ...` or one operand, up to a closing parenthesis."""
    arguments, place = [], start
    function = _FUNCTIONS.get(tokens[start])
    if function is not None:
        place += 1
    while place < len(tokens) and tokens[place] != ")":
        value, place = _operand(tokens, place, variables, dot)
        arguments.append(value)
    return (function(*arguments) if function is not None else arguments[0]), place


def _operand(tokens: Sequence[str], place: int, variables: Mapping[str, Value], dot: Value) -> tuple[Value, int]:
    token = tokens[place]
    if token == "(":
        value, place = _command(tokens, place + 1, variables, dot)
        place += 1
        if place < len(tokens) and tokens[place].startswith("."):
            return _fields(value, tokens[place][1:]), place + 1
        return value, place
    if token.startswith('"'):
        return _unquoted(token), place + 1
    if token.isdigit():
        return int(token), place + 1
    name, dotted, fields = token.partition(".")
    value = variables[name] if name else dot
    return (_fields(value, fields) if dotted and fields else value), place + 1


def _fields(value: Value, names: str) -> Value:
    for name in names.split("."):
        value = value[name]
    return value


def _call(function: Value) -> Value:
    raise TypeError(f"call of {function!r}, which is no function")


def _and(*values: Value) -> Value:
    return next((value for value in values if not value), values[-1])


_FUNCTIONS: dict[str, Callable[..., Value]] = {
    "and": _and,
    "call": _call,
    "eq": lambda left, right: left == right,
    "index": lambda values, place: values[place],
    "len": len,
    "not": lambda value: not value,
    "slice": lambda values, first: values[first:],
}


def _if(condition: str, then: str, otherwise: str = "") -> str:
    branch = f"{{{{ else }}}}{otherwise}" if otherwise else ""
    return f"{{{{ if {condition} }}}}{then}{branch}{{{{ end }}}}"


def _quoted(text: str) -> str:
    """Writes a text as a string of Go in printed ASCII."""
    return '"' + "".join(_escaped(letter) for letter in text) + '"'


def _escaped(letter: str) -> str:
    if letter in '"\\':
        return f"\\{letter}"
    return letter if letter.isascii() and letter.isprintable() else f"\\U{ord(letter):08x}"


def _unquoted(token: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[2], 16)) if match[2] else match[1], token[1:-1])
