"""Reads questions to ask models, and the answers that rows have beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunerun.data import read, report
from tunerun.data.convert import Reading
from tunerun.data.detect import OPTIONS, Format, format_of
from tunerun.data.normalise import normalise, unanswered
from tunerun.data.report import Tally
from tunerun.data.rows import BadRow, Conversation, DataFile, Row, RowFault
from tunerun.errors import Problem, UserError


@dataclass(frozen=True, slots=True)
class Question:
    """What models are asked."""

    messages: tuple[Mapping[str, Any], ...]
    """The last one is a user's."""
    reference: str | None
    """The answer that the row has; None when it has none."""


def read_questions(files: Sequence[DataFile], reading: Reading, key: str) -> list[Question]:
    """Reads the rows of files, or their lines of text, as questions.

    The last answer of a conversation is its reference; earlier ones belong to the question.

    Args:
        files: Of rows.
        reading: How the files are read.
        key: What named the files, for messages.

    Raises:
        UserError: A file cannot be read, a row is no question, or there is none.
    """
    tally = Tally()
    found: list[Question] = []
    for file in files:
        try:
            found += _of_file(file, reading, tally)
        except UserError as error:
            tally.unreadable += error.problems
    problems = report.problems(tally, rows=True)
    if not problems and not found:
        problems.append(Problem(where=key, what="there is no question in it."))
    if problems:
        raise UserError(problems)
    return found


def _of_file(file: DataFile, reading: Reading, tally: Tally) -> Iterator[Question]:
    columns = file.columns or reading.columns
    name = file.format or reading.format
    prompts: Format | None = None
    for row in read.read_file(file, reading.sheet):
        tally.rows_read += 1
        if isinstance(row, BadRow):
            tally.add_bad(row)
            continue
        prompts = prompts or format_of(row, name, columns, ("prompts", "text"), OPTIONS)
        try:
            # A row may lack the answer that the one before it has.
            yield _answered(row, name, columns) or _asked(row, prompts)
        except RowFault as fault:
            tally.add_bad(BadRow(row.file, row.line, fault.reason, fault.detail))
        except RecursionError:
            tally.add_bad(BadRow(row.file, row.line, "bad-json", "the value is nested too deeply."))


def _answered(row: Row, name: str, columns: Mapping[str, str]) -> Question | None:
    try:
        form = format_of(row, name, columns, ("conversations",), OPTIONS)
        content = normalise(row.value, form)
    except (UserError, RowFault):
        return None
    assert isinstance(content, Conversation)
    *messages, answer = content.messages
    simple = all(message["role"] != "tool" and "tool_calls" not in message for message in content.messages)
    if content.tools or not simple or answer["role"] != "assistant" or not answer["content"].strip():
        return None
    return Question(tuple(messages), answer["content"])


def _asked(row: Row, form: Format) -> Question:
    messages = unanswered(row.value, form).messages
    return Question(messages[:-1] if messages[-1]["role"] == "assistant" else messages, None)
