"""Splits one file of rows into two of the same format, each row with the bytes it had."""

from __future__ import annotations

import contextlib
import gzip
import json
import mmap
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from tunerun import artifacts
from tunerun.data import read, report
from tunerun.data.convert import Reading
from tunerun.data.detect import KINDS, OPTIONS, Format, format_of
from tunerun.data.keys import row_keys
from tunerun.data.normalise import normalise
from tunerun.data.read.source import HEAD_BYTES, UTF8_MARK
from tunerun.data.report import Tally
from tunerun.data.rows import BadRow, Row, RowFault, Text
from tunerun.data.split import hold_out_count, hold_out_fraction, ranks
from tunerun.errors import Problem, UserError
from tunerun.paths import DELIMITED_SUFFIXES, JSON_SUFFIXES, PACKABLE_SUFFIXES

_GZIP = ".gz"
_GZIP_MAGIC, _ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"

# Within a JSON text: a string, or what opens, closes or separates.
_JSON_PART = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{},]', re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Halves:
    """What a split wrote."""

    train: Path
    train_rows: int
    evaluated: Path
    eval_rows: int
    form: str
    """What the rows were found to be."""


def targets(path: Path, folder: Path | None) -> tuple[Path, Path]:
    """Returns the files that a split of a file writes: `FILE-train.EXT` and `FILE-eval.EXT`.

    Raises:
        UserError: It is not a file that can be split into two with the rows' own bytes.
    """
    kind = read.kind_of(path)
    if not path.is_file():
        raise UserError(Problem(where=str(path), what="is not a file.", fix="Name one file of rows."))
    if kind not in PACKABLE_SUFFIXES:
        fix = f"Write it as JSON lines first: tunerun data convert {path.name} {path.stem}.jsonl"
        raise UserError(Problem(where=str(path), what="cannot be split as it is.", fix=fix))
    with path.open("rb") as file:
        if file.read(len(_ZSTD_MAGIC)) == _ZSTD_MAGIC:
            fix = "Unpack it, or compress it by gzip."
            raise UserError(Problem(where=str(path), what="is compressed by zstd, which is not written.", fix=fix))
    ends = len(kind) + (len(_GZIP) if path.name.lower().endswith(_GZIP) else 0)
    stem, extension = path.name[:-ends], path.name[-ends:]
    where = path.parent if folder is None else folder
    return where / f"{stem}-train{extension}", where / f"{stem}-eval{extension}"


def split_file(path: Path, amount: float, seed: int, reading: Reading, folder: Path | None = None) -> Halves:
    """Writes the rows of a file into two, chosen as `data.eval_fraction` and `data.eval_rows` choose.

    Args:
        path: JSON lines, a JSON array, CSV, TSV or text, compressed by gzip or not.
        amount: Share of the rows to evaluate on when below 1, else their number.
        seed: Of the choice.
        reading: How the rows are read; rows that no format fits are chosen by all they hold.
        folder: Where to write; beside the file when None.

    Raises:
        UserError: The file cannot be read or split, or one of the two would be empty.
    """
    train, evaluated = targets(path, folder)
    lines, contents, form = _rows(path, reading)
    if amount >= max(len(lines), 1):
        what = f"{int(amount):,} rows to evaluate on leave none to train on: {path} has {len(lines):,} rows."
        raise UserError(Problem(where="--eval", what=what, fix="Take fewer."))
    ranked, source = ranks(np.array(contents, np.uint64), seed), np.zeros(len(contents), np.int64)
    held = hold_out_fraction(ranked, source, amount) if amount < 1 else hold_out_count(ranked, source, int(amount))
    if not held.any() or held.all():
        what = f"holds {len(held):,} rows, which cannot be split: equal rows stay together."
        raise UserError(Problem(where=str(path), what=what))
    with (
        artifacts.publish(train) as first,
        artifacts.publish(evaluated) as second,
        _writer(first, path) as train_file,
        _writer(second, path) as eval_file,
    ):
        _copy(path, lines, held, (train_file, eval_file))
    count = int(held.sum())
    return Halves(
        train=train, train_rows=len(held) - count, evaluated=evaluated, eval_rows=count, form=form or "no known format"
    )


def _rows(path: Path, reading: Reading) -> tuple[list[int], list[int], str]:
    """Returns line and content hash of each row, and the format found.

    Raises:
        UserError: Rows are malformed; all are listed.
    """
    tally, form, known = Tally(), "", True
    lines: list[int] = []
    contents: list[int] = []
    found: Format | None = None
    for row in read.read_rows(path):
        tally.rows_read += 1
        if isinstance(row, BadRow):
            tally.add_bad(row)
            continue
        if found is None and known:
            found = _format(row, reading)
            known, form = found is not None, "" if found is None else f"{found.name} ({found.why})"
        lines.append(row.line)
        contents.append(_content(row, found))
    if tally.bad:
        raise UserError(report.problems(tally, rows=True))
    return lines, contents, form


def _format(row: Row, reading: Reading) -> Format | None:
    try:
        return format_of(row, reading.format, reading.columns, KINDS, OPTIONS)
    except UserError:
        if reading.columns or reading.format != "auto":
            raise
        return None


def _content(row: Row, form: Format | None) -> int:
    """Hashes what training will see of a row; a row that it will refuse by all that it holds."""
    if form is not None:
        with contextlib.suppress(RowFault, RecursionError):
            return row_keys(normalise(row.value, form))[0]
    return row_keys(Text(json.dumps(row.value, ensure_ascii=False, sort_keys=True)))[0]


@contextlib.contextmanager
def _writer(target: Path, like: Path) -> Iterator[BinaryIO]:
    if not like.name.lower().endswith(_GZIP):
        with target.open("wb") as file:
            yield file
        return
    # Without a name and a time in it, the same rows give the same bytes.
    with target.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
        yield cast(BinaryIO, packed)


def _copy(path: Path, lines: list[int], held: npt.NDArray[np.bool_], out: tuple[BinaryIO, BinaryIO]) -> None:
    kind = read.kind_of(path)
    with _mapped(path) as data:
        mark = UTF8_MARK if data[: len(UTF8_MARK)] == UTF8_MARK else b""
        for target in out:
            target.write(mark)
        data.seek(len(mark))
        if kind in JSON_SUFFIXES and data[len(mark) : HEAD_BYTES].lstrip().startswith(b"["):
            _copy_array(data, held, out)
        else:
            sides = dict(zip(lines, held.tolist(), strict=True))
            _copy_lines(data, sides, out, header=kind in DELIMITED_SUFFIXES)


def _copy_lines(data: mmap.mmap, sides: dict[int, Any], out: tuple[BinaryIO, BinaryIO], *, header: bool) -> None:
    """Copies lines; those of a table go where the row goes that they are in, and its first ones to both sides."""
    to: tuple[BinaryIO, ...] = out if header else ()
    for number, line in enumerate(iter(data.readline, b""), start=1):
        if number in sides:
            to = (out[sides[number]],)
        elif not header:
            continue
        for target in to:
            # The last row of a file may lack its line end, and need not be the last one of its side.
            target.write(line if line.endswith(b"\n") else line + b"\n")


def _copy_array(data: mmap.mmap, held: npt.NDArray[np.bool_], out: tuple[BinaryIO, BinaryIO]) -> None:
    lead: bytes | None = None
    written = [False, False]
    for side, (start, end) in zip(held.tolist(), _elements(data), strict=True):
        if lead is None:
            lead = data[data.find(b"[") + 1 : start]
        out[side].write((b"," if written[side] else b"[") + lead)
        out[side].write(data[start:end])
        written[side] = True
    for target in out:
        target.write(b"\n]\n" if lead and b"\n" in lead else b"]\n")


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    """Maps the text of a file into memory; what is compressed is unpacked into a file without a name first."""
    with contextlib.ExitStack() as stack:
        file: Any = stack.enter_context(path.open("rb"))
        if file.peek(2)[:2] == _GZIP_MAGIC:
            packed = stack.enter_context(gzip.GzipFile(fileobj=file))
            file = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(packed, file)
            file.flush()
        yield stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _elements(data: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Yields where each element of a JSON array starts and ends, without the blanks around it.

    The text has been parsed before, so that only nesting has to be followed.
    """
    depth, start = 0, 0
    for part in _JSON_PART.finditer(data):
        sign = part[0]
        if sign in (b"[", b"{"):
            depth += 1
            if depth == 1:
                start = part.end()
        elif sign in (b"]", b"}", b","):
            if depth == 1:
                yield _trimmed(data, start, part.start())
                start = part.end()
            depth -= sign != b","


def _trimmed(data: mmap.mmap, start: int, end: int) -> tuple[int, int]:
    text = data[start:end]
    return end - len(text.lstrip()), start + len(text.rstrip())
