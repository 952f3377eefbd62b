"""Fields of request bodies: how each is read, and how openapi.json describes it, in one place."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Schema = Mapping[str, Any]


class InvalidRequest(Exception):  # noqa: N818 (the client's mistake)
    """A request body that is not as it should be."""

    def __init__(self, field: str | None, message: str) -> None:
        """Takes the field at fault, as a dotted path, and one sentence."""
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a request body."""

    read: Callable[[Any, str], Any]
    """Checks a value that is not null, and returns what it means; takes the value and the field's path."""
    schema: Schema
    """JSON schema of such a value."""
    required: bool = False


Fields = Mapping[str, Field]


def read_fields(data: Mapping[str, Any], fields: Fields) -> dict[str, Any]:
    """Reads an object's fields.

    Args:
        data: The object; null is as good as absent.
        fields: All that it may have.

    Returns:
        What the given fields mean, by name.

    Raises:
        InvalidRequest: A field is missing, unknown or wrong.
    """
    given = {key: value for key, value in data.items() if value is not None}
    for key in given:
        if key not in fields:
            raise InvalidRequest(printable(key), f"`{printable(key)}` is not a field of this request.")
    for key, field in fields.items():
        if field.required and key not in given:
            raise InvalidRequest(key, f"`{key}` is missing.")
    return {key: fields[key].read(value, key) for key, value in given.items()}


def object_schema(fields: Fields) -> Schema:
    """Describes an object with these fields and no others."""
    return {
        "type": "object",
        "properties": {
            key: field.schema if field.required or not field.schema else {"anyOf": [field.schema, {"type": "null"}]}
            for key, field in fields.items()
        },
        "required": [key for key, field in fields.items() if field.required],
        "additionalProperties": False,
    }


def number(low: float, high: float) -> Field:
    """A number within bounds."""

    def read(value: Any, where: str) -> float:
        real = isinstance(value, int | float) and not isinstance(value, bool)
        if not real or math.isnan(value) or not low <= value <= high:
            raise InvalidRequest(where, f"`{where}` must be a number from {low:g} to {high:g}.")
        return float(value)

    return Field(read, {"type": "number", "minimum": low, "maximum": high})


def whole(low: int, high: int) -> Field:
    """A whole number within bounds."""

    def read(value: Any, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidRequest(where, f"`{where}` must be a whole number from {low} to {high}.")
        return value

    return Field(read, {"type": "integer", "minimum": low, "maximum": high})


def flag() -> Field:
    """True or false."""

    def read(value: Any, where: str) -> bool:
        if not isinstance(value, bool):
            raise InvalidRequest(where, f"`{where}` must be true or false.")
        return value

    return Field(read, {"type": "boolean"})


def text() -> Field:
    """A text."""
    return Field(read_text, {"type": "string"})


def texts(most: int, longest: int) -> Field:
    """A text or a list of them, none empty."""

    def read(value: Any, where: str) -> tuple[str, ...]:
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or len(found) > most:
            raise InvalidRequest(where, f"`{where}` must be a text or a list of at most {most} texts.")
        read_texts = tuple(read_text(item, where) for item in found)
        if not all(0 < len(item) <= longest for item in read_texts):
            raise InvalidRequest(where, f"A `{where}` text must have 1 to {longest} characters.")
        return read_texts

    one = {"type": "string", "minLength": 1, "maxLength": longest}
    return Field(read, {"anyOf": [one, {"type": "array", "items": one, "maxItems": most}]})


def only(*values: Any) -> Field:
    """A field of OpenAI's that is accepted with values that ask for nothing."""

    def read(value: Any, where: str) -> Any:
        # True == 1 in Python, and `best_of=true` is no number.
        if not any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in values):
            raise InvalidRequest(where, f"`{where}` is supported only as {' or '.join(map(json.dumps, values))}.")
        return value

    return Field(read, {"enum": list(values)})


def ignored() -> Field:
    """A field that says something about the caller and nothing about the answer."""
    return Field(lambda value, _: value, {})


def record(fields: Fields) -> Field:
    """An object with fields of its own."""

    def read(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise InvalidRequest(where, f"`{where}` must be an object.")
        try:
            return read_fields(value, fields)
        except InvalidRequest as error:
            raise InvalidRequest(f"{where}.{error.field}", f"In `{where}`: {error}") from error

    return Field(read, object_schema(fields))


def read_text(value: Any, where: str) -> str:
    """Reads a text.

    Raises:
        InvalidRequest: It is none, or has no UTF-8 form.
    """
    if not isinstance(value, str):
        raise InvalidRequest(where, f"`{where}` must be a text.")
    if printable(value) != value:
        raise InvalidRequest(where, f"`{where}` holds half of a surrogate pair, which is no character.")
    return value


def check_texts(value: Any, where: str) -> None:
    """Checks all texts within a JSON value.

    Raises:
        InvalidRequest: One has no UTF-8 form.
    """
    if isinstance(value, str):
        read_text(value, where)
    elif isinstance(value, dict):
        for key, item in value.items():
            read_text(key, where)
            check_texts(item, where)
    elif isinstance(value, list):
        for item in value:
            check_texts(item, where)


def parse_json(source: str) -> Any:
    """Reads JSON as its standard has it.

    Raises:
        ValueError: It is not valid, or holds a number that JSON does not have.
        RecursionError: It is nested too deeply.
    """
    return json.loads(source, parse_constant=_no_constant)


def printable(source: str) -> str:
    """Returns a text with `?` for what has no UTF-8 form."""
    return source.encode("utf-8", "replace").decode("utf-8")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
