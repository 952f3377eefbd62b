"""The pipeline: read, detect, normalise, render, mask, tokenise, fit; rows are streamed through in batches.

Rendering is Python and tokenising is Rust without the interpreter lock, so one batch is rendered while the one before
it is tokenised.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy.typing as npt

from tunerun.chat.faults import ChatFault
from tunerun.config.schema import DataConfig
from tunerun.data import lengths, read
from tunerun.data.detect import Format, format_of
from tunerun.data.encode import Encoder, Example, LabelledSample, Pair, preference, samples_of
from tunerun.data.inputs import Input
from tunerun.data.normalise import normalise
from tunerun.data.placeholders import fill
from tunerun.data.read.index import INDEX
from tunerun.data.report import Source, Tally
from tunerun.data.rows import BadRow, Content, DataFile, Place, Row, RowFault
from tunerun.errors import Problem, UserError
from tunerun.progress import Progress

_BATCH_ROWS = 1024
_BATCH_CHARACTERS = 1 << 20
# One is tokenised by all cores while another, in Python, becomes samples.
_BATCHES_AT_ONCE = 3
_TOO_DEEP = "the value is nested too deeply."


@dataclass(frozen=True, slots=True)
class Encoded:
    """An example and the row it comes from."""

    row: Place
    example: Example


def encode_files(
    given: Input, settings: DataConfig, encoder: Encoder, added: npt.NDArray[Any], tally: Tally
) -> Iterator[Encoded]:
    """Yields the examples of files; rows that cannot be used are counted.

    Args:
        given: Files of rows, and how to read them.
        settings: The section `data`.
        encoder: Of the objective.
        added: Ids of the tokenizer's added tokens.
        tally: Receives the counts, and what is wrong with files as a whole.
    """
    with Progress("read rows", total=None, unit="rows") as progress:
        rows = _usable_rows(given, settings, encoder, tally)
        kept: Place | None = None
        for batch in _encoded_batches(rows, encoder, tally):
            progress.advance(len({id(row) for row, _ in batch}))
            for row, example in batch:
                for fitted in _fitted(row, example, settings, added, tally):
                    tally.rows_kept += row is not kept
                    kept = row
                    yield Encoded(row, fitted)


def _usable_rows(given: Input, settings: DataConfig, encoder: Encoder, tally: Tally) -> Iterator[tuple[Place, Content]]:
    left = given.source.max_rows
    for file in given.files:
        before = tally.rows_read
        try:
            yield from _file_rows(
                file, replace(given, source=replace(given.source, max_rows=left)), settings, encoder, tally
            )
        except UserError as error:
            tally.unreadable += error.problems
        if left is not None:
            left -= tally.rows_read - before
            if left <= 0:
                break


def _file_rows(
    file: DataFile, given: Input, settings: DataConfig, encoder: Encoder, tally: Tally
) -> Iterator[tuple[Place, Content]]:
    form: Format | None = None
    source, count = given.source, 0
    sheet = file.sheet or source.sheet
    name = file.source if sheet is None else f"{file.source} ({sheet})"
    earlier = tally.sources[name].rows if name in tally.sources else 0
    strict = encoder.kinds != ("text",)
    try:
        for row in islice(read.read_file(file, source.sheet), source.max_rows):
            tally.rows_read += 1
            count += 1
            if isinstance(row, BadRow):
                tally.add_bad(row)
                continue
            if form is None:
                form = _format_of(row, file, given, encoder)
            try:
                value = fill(row.value, settings.vars, strict=strict)
                made = normalise(value, form, source.system, override=settings.system_override)
                yield Place(row.file, row.line, tally.ledger.add(row.file, row.line, name, made)), made
            except RowFault as fault:
                tally.add_bad(BadRow(row.file, row.line, fault.reason, fault.detail))
            except RecursionError:
                tally.add_bad(BadRow(row.file, row.line, "bad-json", _TOO_DEEP))
    finally:
        # A file that breaks off has been read so far.
        if form is not None:
            tally.sources[name] = Source(form, file.revision, earlier + count, source.weight)
    if not count:
        raise UserError(Problem(where=file.name, what="holds no rows."))


def _format_of(row: Row, file: DataFile, given: Input, encoder: Encoder) -> Format:
    name = file.format or given.source.format
    assert name is not None, "config.data_sources fills it in"
    key = INDEX if file.columns or file.format else given.key
    return format_of(row, name, file.columns or given.source.columns, encoder.kinds, key)


def _encoded_batches(
    rows: Iterator[tuple[Place, Content]], encoder: Encoder, tally: Tally
) -> Iterator[list[tuple[Place, Example]]]:
    with ThreadPoolExecutor(max_workers=_BATCHES_AT_ONCE) as pool:
        waiting: deque[Future[list[tuple[Place, Example]]]] = deque()
        for batch in _batches(_rendered(rows, encoder, tally)):
            waiting.append(pool.submit(_tokenised, batch, encoder))
            if len(waiting) > _BATCHES_AT_ONCE:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _batches(rendered: Iterator[tuple[Place, Any]]) -> Iterator[list[tuple[Place, Any]]]:
    """Yields batches that are long enough to keep the cores busy and short enough to keep in memory."""
    batch: list[tuple[Place, Any]] = []
    characters = 0
    for row, text in rendered:
        batch.append((row, text))
        characters += len(text)
        if len(batch) == _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _tokenised(rendered: Sequence[tuple[Place, Any]], encoder: Encoder) -> list[tuple[Place, Example]]:
    made = encoder.encode([text for _, text in rendered])
    return [(row, sample) for (row, _), samples in zip(rendered, made, strict=True) for sample in samples]


def _rendered(rows: Iterator[tuple[Place, Content]], encoder: Encoder, tally: Tally) -> Iterator[tuple[Place, Any]]:
    for row, value in rows:
        try:
            texts = encoder.render(value)
        except ChatFault as fault:
            tally.add_bad(BadRow(row.file, row.line, fault.reason, fault.detail))
            continue
        except RecursionError:
            tally.add_bad(BadRow(row.file, row.line, "bad-json", _TOO_DEEP))
            continue
        if not texts:
            tally.add_dropped(row, "nothing-trained", "no assistant message of the row is trained.")
        for text in texts:
            yield row, text


def _fitted(
    row: Place, example: Example, settings: DataConfig, added: npt.NDArray[Any], tally: Tally
) -> tuple[Example, ...]:
    size, limit = max(len(tokens) for tokens, _ in samples_of(example)), settings.max_length
    try:
        fitted, cut = _fit(example, settings, added)
    except RowFault as fault:
        tally.add_bad(BadRow(row.file, row.line, fault.reason, fault.detail))
        return ()
    detail = f"{size} tokens, data.max_length is {limit}."
    if not fitted:
        tally.add_dropped(row, "too-long", detail)
    elif not any(all(trained.any() for _, trained in samples_of(part)) for part in fitted):
        tally.add_dropped(row, "nothing-trained", f"no trained token is within data.max_length: {detail}")
    else:
        if cut:
            tally.add_cut(row, cut, detail)
        return fitted
    return ()


def _fit(example: Example, settings: DataConfig, added: npt.NDArray[Any]) -> tuple[tuple[Example, ...], lengths.Cut]:
    """Makes an example fit into a row; returns the examples that it becomes, and what was shortened."""
    limit, policy = settings.max_length, settings.too_long
    assert limit is not None, "the stage bounds it"
    if isinstance(example, Pair):
        pair, cut = preference.fit(example, limit, policy, added)
        return (() if pair is None else (pair,)), cut
    if isinstance(example, LabelledSample):
        made = lengths.fit(example.sample, limit, policy, added)
        return tuple(LabelledSample(sample, example.desirable) for sample in made.samples), made.cut
    made = lengths.fit(example, limit, policy, added)
    return made.samples, made.cut
