"""The pipeline: read, detect, normalise, render, mask, tokenise, fit; rows are streamed through in batches.

Rendering is Python and tokenising is Rust without the interpreter lock, so one batch is rendered while the one before
it is tokenised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from tunerun.chat.faults import ChatFault
from tunerun.config.schema import DataConfig
from tunerun.data import lengths, read
from tunerun.data.detect import Format, format_of
from tunerun.data.encode import Encoder, Sample
from tunerun.data.normalise import fill, normalise
from tunerun.data.report import Source, Tally
from tunerun.data.rows import BadRow, Conversation, DataFile, Place, Row, RowFault, Text
from tunerun.errors import Problem, UserError
from tunerun.progress import Progress

_BATCH_ROWS = 256
_TOO_DEEP = "the value is nested too deeply."


@dataclass(frozen=True, slots=True)
class Encoded:
    """A sample and the row it comes from."""

    row: Place
    sample: Sample


def encode_files(
    files: Sequence[DataFile], settings: DataConfig, encoder: Encoder, added: npt.NDArray[Any], tally: Tally
) -> Iterator[Encoded]:
    """Yields the samples of files; rows that cannot be used are counted.

    Args:
        files: Of rows.
        settings: The section `data`.
        encoder: Of the objective.
        added: Ids of the tokenizer's added tokens.
        tally: Receives the counts, and what is wrong with files as a whole.
    """
    with Progress("read rows", total=None, unit="rows") as progress:
        rows = _usable_rows(files, settings, encoder, tally)
        kept: Place | None = None
        for batch in _encoded_batches(rows, encoder, tally):
            progress.advance(len({id(row) for row, _ in batch}))
            for row, sample in batch:
                for fitted in _fitted(row, sample, settings, added, tally):
                    tally.rows_kept += row is not kept
                    kept = row
                    yield Encoded(row, fitted)


def _usable_rows(
    files: Sequence[DataFile], settings: DataConfig, encoder: Encoder, tally: Tally
) -> Iterator[tuple[Place, Conversation | Text]]:
    limit = settings.max_rows
    for file in files:
        try:
            yield from _file_rows(file, settings, encoder, tally)
        except UserError as error:
            tally.unreadable += error.problems
        if limit is not None and tally.rows_read >= limit:
            break


def _file_rows(
    file: DataFile, settings: DataConfig, encoder: Encoder, tally: Tally
) -> Iterator[tuple[Place, Conversation | Text]]:
    form: Format | None = None
    left = None if settings.max_rows is None else settings.max_rows - tally.rows_read
    count = 0
    earlier = tally.sources[file.source].rows if file.source in tally.sources else 0
    for row in islice(read.read_rows(file.path, file.name), left):
        tally.rows_read += 1
        count += 1
        if isinstance(row, BadRow):
            tally.add_bad(row)
            continue
        if form is None:
            form = _format_of(row, settings, encoder.chat)
        tally.sources[file.source] = Source(form, file.revision, earlier + count)
        try:
            value = fill(row.value, settings.vars, strict=encoder.chat)
            made = normalise(value, form.name, form.columns, settings.system)
            yield Place(row.file, row.line, tally.ledger.add(row.file, row.line, file.source, made)), made
        except RowFault as fault:
            tally.add_bad(BadRow(row.file, row.line, fault.reason, fault.detail))
        except RecursionError:
            tally.add_bad(BadRow(row.file, row.line, "bad-json", _TOO_DEEP))
    if not count:
        raise UserError(Problem(where=file.name, what="holds no rows."))


def _format_of(row: Row, settings: DataConfig, chat: bool) -> Format:
    form = format_of(row, settings.format, settings.columns)
    if form.chat != chat:
        kind, other = ("conversations", "sft") if form.chat else ("plain text", "pretrain")
        what = f"the rows are {kind} ({form.why}), which this objective does not learn from."
        fix = f"Set objective={other}, or name the columns by data.columns."
        raise UserError(Problem(where=f"{row.file}:{row.line}", what=what, fix=fix))
    return form


def _encoded_batches(
    rows: Iterator[tuple[Place, Conversation | Text]], encoder: Encoder, tally: Tally
) -> Iterator[list[tuple[Place, Sample]]]:
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting: Future[list[tuple[Place, Sample]]] | None = None
        while batch := list(islice(rows, _BATCH_ROWS)):
            rendered = _rendered(batch, encoder, tally)
            running = pool.submit(_tokenised, rendered, encoder)
            if waiting is not None:
                yield waiting.result()
            waiting = running
        if waiting is not None:
            yield waiting.result()


def _tokenised(rendered: Sequence[tuple[Place, Any]], encoder: Encoder) -> list[tuple[Place, Sample]]:
    made = encoder.encode([text for _, text in rendered])
    return [(row, sample) for (row, _), samples in zip(rendered, made, strict=True) for sample in samples]


def _rendered(
    batch: Sequence[tuple[Place, Conversation | Text]], encoder: Encoder, tally: Tally
) -> list[tuple[Place, Any]]:
    made: list[tuple[Place, Any]] = []
    for row, value in batch:
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
        made += [(row, text) for text in texts]
    return made


def _fitted(
    row: Place, sample: Sample, settings: DataConfig, added: npt.NDArray[Any], tally: Tally
) -> tuple[Sample, ...]:
    size, limit = len(sample[0]), settings.max_length
    try:
        fitted = lengths.fit(sample, limit, settings.too_long, added)
    except RowFault as fault:
        tally.add_bad(BadRow(row.file, row.line, fault.reason, fault.detail))
        return ()
    detail = f"{size} tokens, data.max_length is {limit}."
    if not fitted.samples:
        tally.add_dropped(row, "too-long", detail)
    elif not any(np.any(trained) for _, trained in fitted.samples):
        tally.add_dropped(row, "nothing-trained", f"no trained token is within data.max_length: {detail}")
    else:
        if fitted.cut:
            tally.add_cut(row, fitted.cut, detail)
        return fitted.samples
    return ()
