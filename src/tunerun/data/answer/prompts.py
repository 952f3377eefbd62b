"""Reads the prompts that a teacher is to answer, with the reader of training rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from tunerun.data import read, report
from tunerun.data.detect import Format, format_of
from tunerun.data.normalise import prompt_of
from tunerun.data.placeholders import fill
from tunerun.data.read.index import INDEX
from tunerun.data.report import Tally
from tunerun.data.rows import BadRow, DataFile, Prompt, Row, RowFault, RowKind
from tunerun.errors import Problem, UserError
from tunerun.plan.steps import AnswerStep

WANTED: tuple[RowKind, ...] = ("prompts", "text")
_SECTION = "answer"


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt and where it comes from."""

    prompt: Prompt
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Prompts:
    """What was read."""

    asked: tuple[Asked, ...]
    """In the order of the files."""
    rows_read: int
    dropped: dict[str, int]
    """Rows that are no prompts, by reason."""


def read_prompts(step: AnswerStep) -> Prompts:
    """Reads every prompt of a step.

    Raises:
        UserError: A file cannot be read, a row is no prompt (`data.on_bad_rows=drop` leaves it out), or none is left.
        StageError: A data set cannot be downloaded.
    """
    answer, tally = step.answer, Tally()
    cache_dir = None if step.cache_dir is None else Path(step.cache_dir)
    files = read.find_files(answer.prompts, "answer.prompts", cache_dir, hub=step.hub)
    read.check_files(files)
    asked = tuple(islice(_usable(files, step, tally), answer.max_prompts))
    found = report.problems(tally, rows=step.on_bad_rows == "fail")
    if tally.bad and step.on_bad_rows == "fail":
        what = f"{tally.bad.total():,} of {tally.rows_read:,} rows are no prompts; nothing was asked."
        found.append(Problem(where="answer.prompts", what=what, fix="Mend them, or set data.on_bad_rows=drop."))
    if not found and not asked:
        what = f"none of {tally.rows_read:,} rows is a prompt."
        found.append(Problem(where="answer.prompts", what=what, fix="Give other prompts."))
    if found:
        raise UserError(found)
    return Prompts(asked, tally.rows_read, dict(tally.bad))


def _usable(files: list[DataFile], step: AnswerStep, tally: Tally) -> Iterator[Asked]:
    for file in files:
        try:
            yield from _of_file(file, step, tally)
        except UserError as error:
            tally.unreadable += error.problems


def _of_file(file: DataFile, step: AnswerStep, tally: Tally) -> Iterator[Asked]:
    form: Format | None = None
    for row in read.read_file(file, step.answer.sheet):
        tally.rows_read += 1
        if isinstance(row, BadRow):
            tally.add_bad(row)
            continue
        if form is None:
            form = _format_of(row, file, step)
        try:
            prompt = prompt_of(row.value, form, step.answer.system)
            yield Asked(_filled(prompt, step), row.file, row.line)
        except RowFault as fault:
            tally.add_bad(BadRow(row.file, row.line, fault.reason, fault.detail))
        except RecursionError:
            tally.add_bad(BadRow(row.file, row.line, "bad-json", "the value is nested too deeply."))


def _filled(prompt: Prompt, step: AnswerStep) -> Prompt:
    return replace(prompt, messages=tuple(fill(list(prompt.messages), step.vars, strict=True)))


def _format_of(row: Row, file: DataFile, step: AnswerStep) -> Format:
    key = INDEX if file.columns or file.format else _SECTION
    return format_of(row, file.format or step.answer.format, file.columns or step.answer.columns, WANTED, key)
