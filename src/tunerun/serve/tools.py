"""Finds tool calls in an answer while it is written.

A call is found when it is complete, so that nothing of one is ever sent as text; what looks like a call and is none
(no JSON, no known function) is text after all. The result does not depend on the pieces that the answer comes in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from tunerun.chat.tool_calls import ToolFormat
from tunerun.serve.fields import parse_json
from tunerun.serve.text import overlap

_ARGUMENT_KEYS = ("arguments", "parameters")
# Newer Mistral models write `name[ARGS]{...}` where older ones wrote a list.
_NAMED = re.compile(r"([A-Za-z0-9_.-]{1,64})(\[ARGS\])?(?=\{)")
_NAMED_BEGINNING = re.compile(r"[A-Za-z0-9_.-]{0,64}(\[(A(R(G(S\]?)?)?)?)?)?")
_BETWEEN = re.compile(r"\s*;?\s*")


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call."""

    name: str
    arguments: str
    """A JSON object."""


Part = str | Call


class ToolParser:
    """Tells text and tool calls apart."""

    def __init__(self, form: ToolFormat, names: Collection[str]) -> None:
        """Takes the way the model writes calls, and the functions there are."""
        self._form, self._names = form, frozenset(names)
        self._held = ""
        self._found: list[Part] = []
        self._start = 0
        """Where in what is held a call's JSON begins, once it has begun."""
        self._value = _Value()
        self._state = self._before if form.bare else self._text
        self._after_call = False

    def push(self, piece: str) -> list[Part]:
        """Takes the next piece of the answer, and returns what is certain."""
        self._held += piece
        return self._run(final=False)

    def flush(self) -> list[Part]:
        """Returns the rest, at the end of the answer."""
        return self._run(final=True)

    def _run(self, *, final: bool) -> list[Part]:
        self._found = []
        # Each state takes something off what is held, changes the state, or waits for more.
        while self._state(final):
            pass
        return self._found

    def _before(self, final: bool) -> bool:
        """At the beginning of an answer that may be a call as it is."""
        begun = self._held.lstrip()
        if not begun:
            self._state = self._text if final else self._state
            return final
        self._state = self._text
        if begun[0] == "{":
            self._begin(len(self._held) - len(begun))
        return True

    def _text(self, final: bool) -> bool:
        opening = self._form.opening
        if self._after_call:
            self._held = self._held.lstrip()
            self._after_call = not self._held
        at = self._held.find(opening)
        if at >= 0:
            self._say(len(self._held[:at].rstrip()))
            self._state = self._opened
            return True
        keep = 0 if final else overlap(self._held, opening)
        certain = self._held[: len(self._held) - keep]
        self._say(len(certain) if final else len(certain.rstrip()))
        return False

    def _opened(self, final: bool) -> bool:
        """What is held is white space, the opening, and perhaps the beginning of a call."""
        after = self._held.index(self._form.opening) + len(self._form.opening)
        body = self._held[after:].lstrip()
        start = len(self._held) - len(body)
        if body.startswith("{") or (self._form.array and (body.startswith("[") or _NAMED.match(body))):
            self._begin(start)
            return True
        possible = not body or (self._form.array and _NAMED_BEGINNING.fullmatch(body))
        if possible and not final:
            return False
        self._reject(after)
        return True

    def _begin(self, start: int) -> None:
        self._start = start
        named = _NAMED.match(self._held, start)
        self._value = _Value(named.end() if named else start)
        self._state = self._call

    def _call(self, final: bool) -> bool:
        end = self._value.end(self._held)
        if end is None and not final:
            return False
        calls = None if end is None else self._calls(self._held[self._start : end])
        if end is None or calls is None:
            opening = self._held.find(self._form.opening, 0, self._start)
            self._reject(self._start + 1 if opening < 0 else opening + len(self._form.opening))
            return True
        self._found += calls
        self._held = self._held[end:]
        self._state = self._between if self._form.bare else self._closing
        return True

    def _closing(self, final: bool) -> bool:
        closing, rest = self._form.closing, self._held.lstrip()
        if closing and rest.startswith(closing):
            self._held = rest[len(closing) :]
        elif closing.startswith(rest):
            if not final:
                return False
            self._held = ""
        self._state, self._after_call = self._text, True
        return True

    def _between(self, final: bool) -> bool:
        """After a call of a model that writes several in a row, with a semicolon between them."""
        match = _BETWEEN.match(self._held)
        assert match
        if match.end() == len(self._held) and not final:
            return False
        self._state = self._text
        if match.end() < len(self._held) and self._held[match.end()] == "{":
            self._begin(match.end())
        else:
            self._after_call = True
        return True

    def _reject(self, length: int) -> None:
        """Takes what was held for a call as text, up to where another one may begin."""
        self._say(length)
        self._state, self._after_call = self._text, False

    def _say(self, length: int) -> None:
        if length:
            self._found.append(self._held[:length])
            self._held = self._held[length:]

    def _calls(self, source: str) -> list[Call] | None:
        named = _NAMED.match(source)
        try:
            value = parse_json(source[named.end() :] if named else source)
            values = [{"name": named[1], "arguments": value}] if named else value
            return [self._read(item) for item in (values if isinstance(values, list) else [values])] or None
        except (ValueError, RecursionError):
            return None

    def _read(self, value: Any) -> Call:
        """Reads a call.

        Raises:
            ValueError: It is none.
        """
        keys = [key for key in _ARGUMENT_KEYS if isinstance(value, dict) and key in value]
        if not keys or "name" not in value or value["name"] not in self._names:
            raise ValueError
        arguments = value[keys[0]]
        if isinstance(arguments, str):
            arguments = parse_json(arguments)
        if not isinstance(arguments, dict):
            raise ValueError
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        # Half of a surrogate pair has no UTF-8 form: that error is a ValueError too.
        text.encode()
        return Call(value["name"], text)


class _Value:
    """Finds the end of a JSON object or list that comes in pieces."""

    def __init__(self, start: int = 0) -> None:
        self._at, self._depth = start, 0
        self._quoted = self._escaped = False

    def end(self, text: str) -> int | None:
        """Returns where the value ends in a text that has grown, or None when it goes on."""
        for index in range(self._at, len(text)):
            character = text[index]
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped, self._quoted = character == "\\", character != '"'
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return index + 1
        self._at = len(text)
        return None


def forced_beginning(form: ToolFormat, names: Sequence[str], *, constrained: bool) -> str:
    """Returns the text that an answer which has to be a call begins with.

    Args:
        form: The way the model writes calls.
        names: Functions that it may call.
        constrained: Whether `forced_schema` makes it write the rest; else as much as is certain is written for it.
    """
    opening = "" if form.bare else f"{form.opening}\n" if form.closing else f"{form.opening} "
    if constrained:
        return opening
    if form.array:
        opening += "["
    # A space belongs to the token that follows it, and a word to the quotation mark before it.
    call = f'{{"name": {json.dumps(names[0])}, "{form.arguments}":' if len(names) == 1 else '{"name":'
    return opening + call


def forced_schema(form: ToolFormat, tools: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    """Returns the JSON schema of one call of the named functions."""
    calls = [_call_schema(form, tool["function"]) for tool in tools if tool["function"]["name"] in names]
    call = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return {"type": "array", "items": call, "minItems": 1, "maxItems": 1} if form.array else call


def _call_schema(form: ToolFormat, function: Any) -> dict[str, Any]:
    parameters = function.get("parameters")
    return {
        "type": "object",
        "properties": {
            "name": {"const": function["name"]},
            form.arguments: parameters if isinstance(parameters, dict) and parameters else {"type": "object"},
        },
        "required": ["name", form.arguments],
        "additionalProperties": False,
    }
