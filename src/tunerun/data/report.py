"""What happened to the rows: counted while they are read, and written to report.json."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from tunerun import artifacts
from tunerun.config.schema import DataConfig
from tunerun.data.detect import Format
from tunerun.data.keys import Ledger
from tunerun.data.rows import BadRow, Place
from tunerun.data.selection import MAX_EXAMPLES, Copies, Copy, Selection
from tunerun.errors import Problem
from tunerun.formats.pairs import CHOSEN, REJECTED, PairStore
from tunerun.formats.tokens import Manifest, TokenStore

BAD_ROWS = "bad_rows.jsonl"
"""File that lists every row that could not be used; there only where there are such rows."""
_SHOWN_ROWS = 3
_SHOWN_LINES = 12
_BARS = 8
_SIZES = ("rows", "samples", "tokens", "trained_tokens")

# What to do about a reason; the detail of each row says what is wrong.
FIXES = {
    "answer-cut": "Raise data.max_length, or drop such rows by data.too_long=drop.",
    "bad-encoding": "Save the file as UTF-8.",
    "empty-answer": "Write the answer or remove the row.",
    "empty-prompt": "Write the prompt or remove the row.",
    "same-answers": "Remove the row: there is nothing to prefer.",
    "history-differs": "Set data.multi_turn=split.",
    "no-end-of-turn": "Name a template whose turns end in a token of this model by model.chat_template.",
    "template-drops-tools": "Name a template with tools by model.chat_template.",
    "too-long": "Raise data.max_length, or set data.too_long=truncate_prompt.",
    "unfilled-placeholder": "Fill it by data.vars.NAME=TEXT, or keep it by \"data.vars.NAME='{{NAME}}'\".",
}


@dataclass(frozen=True, slots=True)
class Source:
    """A file or data set that was read."""

    form: Format
    revision: str | None
    """Commit of a data set on its hub."""
    rows: int
    weight: float = 1.0
    """Times each row is in an epoch."""


@dataclass(slots=True)
class Tally:
    """Counts that grow while rows are read."""

    rows_read: int = 0
    rows_kept: int = 0
    sources: dict[str, Source] = field(default_factory=dict)
    """By file, or by what `data.path` says of a data set on a hub."""
    bad: Counter[str] = field(default_factory=Counter)
    """Rows that could not be used, by reason."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows left out because the settings ask for it, by reason."""
    cut: Counter[str] = field(default_factory=Counter)
    """Samples shortened: in the prompt or in the answer."""
    examples: list[BadRow] = field(default_factory=list)
    """Up to `MAX_EXAMPLES` for each reason."""
    unreadable: list[Problem] = field(default_factory=list)
    """What is wrong with files as a whole."""
    ledger: Ledger = field(default_factory=Ledger)
    """Of the rows that can be used."""
    listing: TextIO | None = None
    """Receives every row that cannot be used, as a line of JSON."""
    _shown: Counter[str] = field(default_factory=Counter)

    def add_bad(self, row: BadRow) -> None:
        """Counts a row that cannot be used."""
        self.bad[row.reason] += 1
        self._example(row)
        if self.listing is not None:
            self.listing.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")

    def add_dropped(self, row: Place, reason: str, detail: str) -> None:
        """Counts a row that is left out on purpose."""
        self.dropped[reason] += 1
        self._example(BadRow(row.file, row.line, reason, detail))

    def add_cut(self, row: Place, part: str, detail: str) -> None:
        """Counts a sample that was shortened in `prompt` or `answer`."""
        self.cut[part] += 1
        self._example(BadRow(row.file, row.line, f"{part}-cut", detail))

    def _example(self, row: BadRow) -> None:
        self._shown[row.reason] += 1
        if self._shown[row.reason] <= MAX_EXAMPLES:
            self.examples.append(row)

    @property
    def bad_fraction(self) -> float:
        """Share of the rows read that could not be used."""
        return self.bad.total() / self.rows_read if self.rows_read else 0.0


def problems(tally: Tally, *, rows: bool) -> list[Problem]:
    """Turns what is wrong into problems: files that cannot be read, and for each reason the first rows and more lines.

    Paths are those that one would type from here.

    Args:
        tally: The counts.
        rows: Whether bad rows are a problem, beside files.
    """
    found = list(tally.unreadable)
    for reason, count in tally.bad.most_common() if rows else ():
        fix = FIXES.get(reason, "")
        bad = [row for row in tally.examples if row.reason == reason]
        shown, more = bad[:_SHOWN_ROWS], bad[_SHOWN_ROWS:]
        found += [Problem(where=f"{row.file}:{row.line}", what=row.detail) for row in shown]
        if count > len(shown):
            what = f"{count - len(shown):,} more rows with {reason}{_lines(more, count - len(shown))}."
            found.append(Problem(where=shown[-1].file, what=what, fix=fix))
        else:
            found[-1] = Problem(where=found[-1].where, what=found[-1].what, fix=fix)
    here = f"{Path.cwd()}/"
    return [replace(problem, where=problem.where.removeprefix(here)) for problem in found]


def verdict(tally: Tally, data: DataConfig, folder: Path) -> Problem:
    """Says how many rows cannot be used.

    Args:
        tally: The counts.
        data: The settings.
        folder: With the report of the failure.
    """
    where = str(folder).removeprefix(f"{Path.cwd()}/")
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in tally.bad.most_common())
    what = (
        f"{tally.bad.total():,} of {tally.rows_read:,} rows cannot be used ({reasons}); all are in {where}/{BAD_ROWS}."
    )
    if data.on_bad_rows == "fail":
        return Problem(where="data.on_bad_rows", what=what, fix="Mend them, or set data.on_bad_rows=drop.")
    what = f"{what} At most {data.max_dropped_fraction:.4g} of all rows may be dropped."
    return Problem(where="data.max_dropped_fraction", what=what, fix="Mend them, or raise it.")


def _lines(rows: Sequence[BadRow], count: int) -> str:
    """Lists where more rows are, as far as there is room."""
    if not rows or len({row.file for row in rows}) > 1:
        return ""
    shown = [str(row.line) for row in rows[:_SHOWN_LINES]]
    rest = f" and {count - len(shown):,} more" if count > len(shown) else ""
    return f": {'line' if count == 1 else 'lines'} {', '.join(shown)}{rest}"


def build(
    tally: Tally,
    *,
    train: TokenStore | PairStore | None,
    held_out: TokenStore | PairStore | None,
    lengths: npt.NDArray[Any],
    selection: Selection | None,
) -> dict[str, Any]:
    """Builds report.json.

    Args:
        tally: The counts.
        train: The train set; None when the rows cannot be used.
        held_out: The eval set, or None.
        lengths: Tokens of each sample, train and eval, shape [samples].
        selection: What became of the samples; None when the rows cannot be used.
    """
    left_out = Counter(selection.dropped if selection is not None else {})
    dropped = tally.bad + tally.dropped + left_out
    sizes = _sizes(train) if train is not None else dict.fromkeys(_SIZES, 0)
    return {
        "schema": artifacts.DATA_SCHEMA,
        "rows_read": tally.rows_read,
        "rows_kept": tally.rows_kept - left_out.total(),
        "dropped": dict(dropped.most_common()),
        "truncated": tally.cut.total(),
        "truncated_answers": tally.cut["answer"],
        "zero_label": tally.dropped["nothing-trained"],
        "empty_answers": tally.bad["empty-answer"],
        "role_order_faults": tally.bad["role-order"],
        "encoding_faults": tally.bad["bad-encoding"],
        "duplicates": _copies(selection.duplicates) if selection is not None else None,
        "overlap": _copies(selection.overlap) if selection is not None and held_out is not None else None,
        "unreadable": [{"where": problem.where, "what": problem.what} for problem in tally.unreadable],
        "examples": [asdict(row) for row in tally.examples],
        "sources": [
            {
                "file": name,
                "format": source.form.name,
                "why": source.form.why,
                "rows": source.rows,
                "weight": source.weight,
                "revision": source.revision,
            }
            for name, source in tally.sources.items()
        ],
        **sizes,
        "trained_share": round(sizes["trained_tokens"] / sizes["tokens"], 4) if sizes["tokens"] else None,
        "packing_fill": _fill(train.manifest) if train is not None and train.manifest.packed else None,
        "sides": _sides(train) if isinstance(train, PairStore) else None,
        "labels": _labels(train) if isinstance(train, TokenStore) and train.labels is not None else None,
        "eval": None if held_out is None else _sizes(held_out),
        "length_tokens": _length_table(lengths) if len(lengths) else None,
    }


def _copies(copies: Copies) -> dict[str, Any]:
    return {"exact": copies.exact, "near": copies.near, "examples": [_copy(copy) for copy in copies.examples]}


def _copy(copy: Copy) -> dict[str, Any]:
    original = {"file": copy.of_file, "line": copy.of_line}
    return {"file": copy.file, "line": copy.line, "of": original, "exact": copy.exact, "similarity": copy.similarity}


def _fill(manifest: Manifest) -> float:
    return round(manifest.tokens / (manifest.rows * manifest.max_length), 4)


def _sizes(store: TokenStore | PairStore) -> dict[str, int]:
    facts = asdict(store.manifest)
    return {name: facts[name] for name in _SIZES}


def _sides(store: PairStore) -> dict[str, dict[str, int]]:
    return {CHOSEN: _sizes(store.chosen), REJECTED: _sizes(store.rejected)}


def _labels(store: TokenStore) -> dict[str, int]:
    assert store.labels is not None, "the store is labelled"
    good = int(np.count_nonzero(store.labels))
    return {"good": good, "bad": len(store) - good}


def _length_table(lengths: npt.NDArray[Any]) -> dict[str, Any]:
    """Describes the lengths of samples: extremes, median, and counts between round bounds."""
    shortest, longest = int(lengths.min()), int(lengths.max())
    step = _round_step((longest - shortest) / _BARS)
    first = shortest - shortest % step
    bounds = list(range(first, max(longest, first + 1) + step, step))
    counts, _ = np.histogram(lengths, bins=bounds)
    return {
        "min": shortest,
        "median": int(np.median(lengths)),
        "max": longest,
        "bounds": bounds,
        "counts": counts.tolist(),
    }


def _round_step(wanted: float) -> int:
    step = 1
    while step < wanted:
        step *= 2
    return step
