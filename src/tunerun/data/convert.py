"""Writes rows of any format as JSON lines in OpenAI's form, which read back as the same rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunerun import artifacts
from tunerun.data import read, report
from tunerun.data.detect import KINDS, OPTIONS, Format, format_of
from tunerun.data.normalise import normalise
from tunerun.data.read.index import INDEX
from tunerun.data.report import Tally
from tunerun.data.rows import BadRow, Content, Conversation, DataFile, Labelled, Preference, RowFault, RowKind, Text
from tunerun.errors import Problem, UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How rows are read; the same as the keys of `data` with these names."""

    format: str = "auto"
    sheet: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Converted:
    """What was written."""

    rows: int
    dropped: int
    """Rows that could not be used."""
    formats: tuple[str, ...]
    """What the files were found to be, each said once."""


def convert(files: Sequence[DataFile], target: Path, reading: Reading, *, drop: bool) -> Converted:
    """Writes the rows of files as one JSON-lines file.

    A conversation becomes `{"messages": [...]}` with its `tools`, a document `{"text": ...}`, a pair
    `{"messages": [...], "chosen": [...], "rejected": [...]}`, and a labelled answer has a `label` beside its messages.
    Placeholders stay as they are.

    Args:
        files: Of rows.
        target: To write; appears when all rows are in it.
        reading: How the files are read.
        drop: Whether rows that cannot be used are left out; else they are an error.

    Raises:
        UserError: Rows or files cannot be used; all are listed.
    """
    tally = Tally()
    formats: dict[str, None] = {}
    kinds: dict[RowKind, str] = {}
    with artifacts.publish(target) as staging, staging.open("w", encoding="utf-8", newline="\n") as out:
        for file in files:
            for form, line in _lines(file, reading, tally):
                formats[f"{form.name} ({form.why})"] = None
                kinds.setdefault(form.kind, file.name)
                out.write(line)
        _check(tally, kinds, drop=drop)
    return Converted(rows=tally.rows_kept, dropped=tally.bad.total(), formats=tuple(formats))


def as_json(value: Content) -> dict[str, Any]:
    """Returns a row as it is written.

    Raises:
        RowFault: It is a labelled answer of several messages, which the written form cannot tell from its prompt.
    """
    if isinstance(value, Text):
        return {"text": value.text}
    if isinstance(value, Conversation):
        return {"messages": _messages(value), **_tools(value)}
    if isinstance(value, Labelled):
        made = value.conversation
        if any(_trained(made)[:-1]):
            raise RowFault("several-answers", "the labelled answer has several messages; only one can be written.")
        # Reading takes the last message as the answer by itself.
        return {"messages": _messages(Conversation(made.messages, None)), **_tools(made), "label": value.desirable}
    return _pair(value)


def _lines(file: DataFile, reading: Reading, tally: Tally) -> Iterator[tuple[Format, str]]:
    form: Format | None = None
    columns = file.columns or reading.columns
    try:
        for row in read.read_file(file, reading.sheet):
            tally.rows_read += 1
            if isinstance(row, BadRow):
                tally.add_bad(row)
                continue
            if form is None:
                key = INDEX if file.columns or file.format else OPTIONS
                form = format_of(row, file.format or reading.format, columns, KINDS, key)
            try:
                text = json.dumps(as_json(normalise(row.value, form)), ensure_ascii=False)
            except RowFault as fault:
                tally.add_bad(BadRow(row.file, row.line, fault.reason, fault.detail))
                continue
            except RecursionError:
                tally.add_bad(BadRow(row.file, row.line, "bad-json", "the value is nested too deeply."))
                continue
            tally.rows_kept += 1
            yield form, f"{text}\n"
    except UserError as error:
        tally.unreadable += error.problems


def _check(tally: Tally, kinds: Mapping[RowKind, str], *, drop: bool) -> None:
    found = report.problems(tally, rows=not drop)
    if tally.bad and not drop:
        what = f"{tally.bad.total():,} of {tally.rows_read:,} rows cannot be used; nothing was written."
        found.append(Problem(where="rows", what=what, fix="Mend them, or leave them out by --on-bad-rows drop."))
    if len(kinds) > 1:
        listing = ", ".join(f"{kind} in {name}" for kind, name in kinds.items())
        found.append(Problem(where="rows", what=f"one file cannot hold {listing}.", fix="Convert them one by one."))
    if not found and not tally.rows_kept:
        found.append(Problem(where="rows", what=f"none of {tally.rows_read:,} rows can be used; nothing was written."))
    if found:
        raise UserError(found)


def _pair(value: Preference) -> dict[str, Any]:
    chosen, rejected = value.chosen, value.rejected
    sides = enumerate(zip(chosen.messages, rejected.messages, strict=False))
    common = next((index for index, (one, other) in sides if one != other), len(rejected.messages))
    trained = [_trained(side).index(True) for side in (chosen, rejected) if True in _trained(side)]
    start = min([common, *trained])
    return {
        "messages": _messages(Conversation(chosen.messages[:start], None)),
        "chosen": _messages(chosen)[start:],
        "rejected": _messages(rejected)[start:],
        **_tools(chosen),
    }


def _trained(value: Conversation) -> list[bool]:
    return [
        message["role"] == "assistant" and index not in value.untrained for index, message in enumerate(value.messages)
    ]


def _messages(value: Conversation) -> list[dict[str, Any]]:
    return [_message(message, index in value.untrained) for index, message in enumerate(value.messages)]


def _message(message: Mapping[str, Any], untrained: bool) -> dict[str, Any]:
    made = dict(message)
    if "tool_calls" in made:
        made["tool_calls"] = [_call(call) for call in made["tool_calls"]]
    return {**made, "weight": 0} if untrained else made


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI writes the arguments of a call as a JSON text."""
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {"id": call["id"], "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _tools(value: Conversation) -> dict[str, Any]:
    return {"tools": list(value.tools)} if value.tools else {}
