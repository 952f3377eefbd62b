"""What happened to the rows: counted while they are read, written to report.json and printed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from tunerun.data.detect import Format
from tunerun.data.rows import BadRow, Row
from tunerun.errors import Problem
from tunerun.formats.tokens import Manifest

SCHEMA = 1
MAX_EXAMPLES = 20
_BAR_WIDTH = 40
_BARS = 8

# What to do about a reason; the detail of each row says what is wrong.
FIXES = {
    "answer-cut": "Raise data.max_length, or drop such rows by data.too_long=drop.",
    "bad-encoding": "Save the file as UTF-8.",
    "empty-answer": "Write the answer or remove the row.",
    "history-differs": "Set data.multi_turn=split.",
    "no-end-of-turn": "Name a template whose turns end in a token of this model by model.chat_template.",
    "template-drops-tools": "Name a template with tools by model.chat_template.",
    "too-long": "Raise data.max_length, or set data.too_long=truncate_prompt.",
    "unfilled-placeholder": "Fill it by data.vars.NAME=TEXT.",
}


@dataclass(frozen=True, slots=True)
class Source:
    """A file or data set that was read."""

    form: Format
    revision: str | None
    """Commit of a data set on its hub."""
    rows: int


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
    _shown: Counter[str] = field(default_factory=Counter)

    def add_bad(self, row: BadRow) -> None:
        """Counts a row that cannot be used."""
        self.bad[row.reason] += 1
        self._example(row)

    def add_dropped(self, row: Row, reason: str, detail: str) -> None:
        """Counts a row that is left out on purpose."""
        self.dropped[reason] += 1
        self._example(BadRow(row.file, row.line, reason, detail))

    def add_cut(self, row: Row, part: str, detail: str) -> None:
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


def problems(tally: Tally) -> list[Problem]:
    """Turns the bad rows into problems: the first of each reason, then how many more there are."""
    found: list[Problem] = []
    for reason, count in tally.bad.most_common():
        fix = FIXES.get(reason, "")
        rows = [row for row in tally.examples if row.reason == reason]
        found += [Problem(where=f"{row.file}:{row.line}", what=row.detail, fix=fix) for row in rows]
        if count > len(rows):
            found.append(Problem(where=rows[-1].file, what=f"{count - len(rows)} more rows: {reason}.", fix=fix))
    share = f"{tally.bad.total()} of {tally.rows_read} rows cannot be used."
    found.append(Problem(where="data.on_bad_rows", what=share, fix="Mend them, or set data.on_bad_rows=drop."))
    return found


def build(tally: Tally, train: Manifest, held_out: Manifest | None, lengths: npt.NDArray[Any]) -> dict[str, Any]:
    """Builds report.json.

    Args:
        tally: The counts.
        train: Of the train set.
        held_out: Of the eval set, or None.
        lengths: Tokens of each sample, train and eval, shape [samples].
    """
    dropped = tally.bad + tally.dropped
    return {
        "schema": SCHEMA,
        "rows_read": tally.rows_read,
        "rows_kept": tally.rows_kept,
        "dropped": dict(dropped.most_common()),
        "truncated": tally.cut.total(),
        "truncated_answers": tally.cut["answer"],
        "zero_label": tally.dropped["nothing-trained"],
        "examples": [
            {"file": row.file, "line": row.line, "reason": row.reason, "detail": row.detail} for row in tally.examples
        ],
        "sources": [
            {
                "file": name,
                "format": source.form.name,
                "why": source.form.why,
                "rows": source.rows,
                "revision": source.revision,
            }
            for name, source in tally.sources.items()
        ],
        "rows": train.rows,
        "samples": train.samples,
        "tokens": train.tokens,
        "trained_tokens": train.trained_tokens,
        "packing_fill": round(train.tokens / (train.rows * train.max_length), 4) if train.packed else None,
        "eval": None if held_out is None else _sizes(held_out),
        "length_tokens": _length_table(lengths),
    }


def summary(report: dict[str, Any]) -> str:
    """Formats report.json for a terminal, at most 100 columns wide."""
    lines = [f"data: {report['rows_read']:,} rows read, {report['rows_kept']:,} kept"]
    for source in report["sources"]:
        where = source["file"] if len(source["file"]) <= 30 else "..." + source["file"][-27:]
        lines.append(_line("format", f"{source['format']}: {source['rows']:,} rows of {where} ({source['why']})"))
    lines.append(_line("train", _counts(report)))
    if report["eval"]:
        lines.append(_line("eval", _counts(report["eval"])))
    if report["packing_fill"] is not None:
        lines.append(_line("packing", f"{report['rows']:,} rows, {report['packing_fill']:.1%} full"))
    if report["dropped"]:
        lines.append(_line("dropped", ", ".join(f"{name} {count:,}" for name, count in report["dropped"].items())))
    if report["truncated"]:
        answers = report["truncated_answers"]
        lines.append(_line("cut", f"{report['truncated']:,} samples were too long; {answers:,} lost part of an answer"))
    lines += _histogram(report["length_tokens"])
    return "\n".join(line[:100] for line in lines)


def _sizes(manifest: Manifest) -> dict[str, int]:
    return {
        "rows": manifest.rows,
        "samples": manifest.samples,
        "tokens": manifest.tokens,
        "trained_tokens": manifest.trained_tokens,
    }


def _line(label: str, text: str) -> str:
    return f"  {label:<8} {text}"


def _counts(sizes: dict[str, Any]) -> str:
    tokens, trained = sizes["tokens"], sizes["trained_tokens"]
    return f"{sizes['samples']:,} samples, {tokens:,} tokens, {trained:,} of them trained ({trained / tokens:.1%})"


def _length_table(lengths: npt.NDArray[Any]) -> dict[str, Any]:
    """Describes the lengths of samples: extremes, median, and counts between round bounds."""
    longest = int(lengths.max())
    step = _round_step(longest / _BARS)
    bounds = list(range(0, longest + step, step))
    counts, _ = np.histogram(lengths, bins=[*bounds[:-1], bounds[-1] + 1])
    return {
        "min": int(lengths.min()),
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


def _histogram(table: dict[str, Any]) -> list[str]:
    head = f"min {table['min']:,}, median {table['median']:,}, max {table['max']:,} tokens"
    labels = [f"{low:,}-{high:,}" for low, high in pairwise(table["bounds"])]
    width = max(len(label) for label in labels)
    most = max(table["counts"])
    lines = [_line("length", head)]
    for label, count in zip(labels, table["counts"], strict=True):
        # A bar is shown for every count, however small beside the others.
        bar = "#" * max(round(_BAR_WIDTH * count / most), int(count > 0))
        lines.append(f"           {label:>{width}} {bar:<{_BAR_WIDTH}} {count:,}")
    return lines
