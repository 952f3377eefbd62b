"""Decides of every prepared row whether it is trained on, evaluated on, or left out as a copy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tunerun.config.schema import DataConfig
from tunerun.data.duplicates import first_of, near_copies
from tunerun.data.keys import Ledger
from tunerun.data.split import hold_out_count, hold_out_fraction, ranks
from tunerun.errors import Problem, UserError
from tunerun.formats.tokens import TokenStore

MAX_EXAMPLES = 20

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Copy:
    """A row that is also elsewhere."""

    file: str
    line: int
    of_file: str
    of_line: int
    exact: bool
    similarity: float
    """Estimated share of common 5-token shingles; 1 for an exact copy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Copies:
    """How many rows are copies, and the first of them."""

    exact: int
    near: int
    examples: tuple[Copy, ...]
    """Up to `MAX_EXAMPLES` exact ones and as many near ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """What becomes of the samples and their rows."""

    evaluated: Array
    """Whether each sample is evaluated on, shape [samples]."""
    left_out: Array
    """Whether each sample is neither trained nor evaluated on, shape [samples]."""
    duplicates: Copies
    """Rows that are copies of an earlier row on the same side."""
    overlap: Copies
    """Training rows that are among the rows to evaluate on, whatever the system prompt."""
    dropped: dict[str, int]
    """Rows left out, by reason."""


@dataclass(slots=True)
class _Rows:
    """The rows that gave samples; all arrays have the shape [rows]."""

    numbers: Array
    """In the ledger."""
    apart: Array
    """Whether a row is of `data.eval_path`."""
    original: Array
    """Index of the row that each is an exact copy of, or its own."""
    near: Array
    """Index of the row that each is a near copy of, or -1."""
    similarity: Array
    evaluated: Array

    @property
    def copied(self) -> Array:
        """Whether each row is an exact copy of an earlier one."""
        found: Array = self.original != np.arange(len(self.numbers))
        return found


def select(
    ledger: Ledger, samples: TokenStore, sample_rows: Array, eval_row: int, data: DataConfig, seed: int
) -> Selection:
    """Decides about all rows.

    Args:
        ledger: Of the usable rows.
        samples: All samples, one to a row.
        sample_rows: Number of each sample's row, growing; shape [samples].
        eval_row: First row of `data.eval_path`; the number of rows when there are none.
        data: The settings.
        seed: Of the split.

    Raises:
        UserError: As many rows are to be held out as there are.
    """
    numbers, first_samples = np.unique(sample_rows, return_index=True)
    starts = samples.offsets[np.append(first_samples, len(sample_rows))]
    rows = _compared(ledger, samples, numbers, starts, numbers >= eval_row)
    gone = rows.copied & data.drop_duplicates
    rows.evaluated[~gone] |= _held_out(ledger, numbers[~gone], data, seed)
    contents = ledger.contents[numbers]
    leaked = ~rows.evaluated & ~gone & np.isin(contents, contents[rows.evaluated])
    dropped = {"duplicate": int(gone.sum()), "in-eval": int(leaked.sum())} if data.drop_duplicates else {}
    if data.drop_duplicates:
        gone |= leaked
    back = np.searchsorted(numbers, sample_rows)
    return Selection(
        evaluated=(rows.evaluated & ~gone)[back],
        left_out=gone[back],
        duplicates=_duplicates(ledger, rows),
        overlap=_overlap(ledger, rows, contents, leaked),
        dropped={reason: count for reason, count in dropped.items() if count},
    )


def _compared(ledger: Ledger, samples: TokenStore, numbers: Array, starts: Array, apart: Array) -> _Rows:
    # A row of the evaluation file that is also in the training file is overlap, which is counted by itself.
    original = first_of(ledger.keys[numbers] ^ apart.astype(np.uint64))
    # A row that a source's weight repeats is no copy: it is in the same place.
    files, lines = ledger.files[numbers], ledger.lines[numbers]
    itself = (files == files[original]) & (lines == lines[original])
    original = np.where(itself, np.arange(len(numbers)), original)
    near = near_copies(samples.tokens, starts, original == np.arange(len(numbers)), let_go=samples.let_go)
    return _Rows(numbers, apart, original, near.original, near.similarity, apart.copy())


def _held_out(ledger: Ledger, numbers: Array, data: DataConfig, seed: int) -> Array:
    if data.eval_path or not (data.eval_fraction or data.eval_rows):
        return np.zeros(len(numbers), np.bool_)
    ranked, sources = ranks(ledger.contents[numbers], seed), ledger.sources[numbers]
    if data.eval_rows is not None:
        if data.eval_rows >= len(numbers):
            what = f"{data.eval_rows:,} rows to evaluate on leave none to train on: {len(numbers):,} rows can be used."
            raise UserError(Problem(where="data.eval_rows", what=what, fix="Hold out fewer."))
        return hold_out_count(ranked, sources, data.eval_rows)
    return hold_out_fraction(ranked, sources, data.eval_fraction)


def _duplicates(ledger: Ledger, rows: _Rows) -> Copies:
    exact = np.flatnonzero(rows.copied)
    near = np.flatnonzero((rows.near >= 0) & (rows.evaluated == rows.evaluated[rows.near]))
    return _copies(ledger, rows, exact, rows.original, near)


def _overlap(ledger: Ledger, rows: _Rows, contents: Array, leaked: Array) -> Copies:
    evaluated = np.flatnonzero(rows.evaluated)
    order = evaluated[np.argsort(contents[evaluated], kind="stable")]
    original = np.full(len(contents), -1)
    exact = np.flatnonzero(leaked)
    original[exact] = order[np.searchsorted(contents[order], contents[exact])]
    apart = rows.evaluated != rows.evaluated[rows.near]
    near = np.flatnonzero((rows.near >= 0) & apart & (contents != contents[rows.near]))
    return _copies(ledger, rows, exact, original, near)


def _copies(ledger: Ledger, rows: _Rows, exact: Array, original: Array, near: Array) -> Copies:
    def examples(found: Array, others: Array, alike: Array | None) -> Iterator[Copy]:
        for row in found[:MAX_EXAMPLES]:
            similarity = 1.0 if alike is None else round(float(alike[row]), 3)
            here, there = ledger.place(rows.numbers[row]), ledger.place(rows.numbers[others[row]])
            yield Copy(*here, *there, alike is None, similarity)

    listed = (*examples(exact, original, None), *examples(near, rows.near, rows.similarity))
    return Copies(exact=len(exact), near=len(near), examples=listed)
