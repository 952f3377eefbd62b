"""report.json for a terminal, at most 100 columns wide."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from tunerun import columns
from tunerun.columns import MAX_COLUMNS

_BAR_COLUMNS = 40
_PATH_COLUMNS = 40
_SHOWN_SOURCES = 8


def summary(report: Mapping[str, Any]) -> str:
    """Lays report.json out."""
    lines = [f"data: {report['rows_read']:,} rows read, {report['rows_kept']:,} kept"]
    lines += _sources(report)
    lines.append(_line("train", _counts(report)))
    if report["sides"] is not None:
        sides = [f"{name} {sizes['tokens']:,} tokens" for name, sizes in report["sides"].items()]
        lines.append(_line("pairs", ", ".join(sides)))
    if report["labels"] is not None:
        lines.append(_line("labels", ", ".join(f"{count:,} {name}" for name, count in report["labels"].items())))
    if report["eval"]:
        lines.append(_line("eval", _counts(report["eval"])))
    if report["packing_fill"] is not None:
        lines.append(_line("packing", f"{report['rows']:,} rows, {report['packing_fill']:.1%} full"))
    if report["dropped"]:
        lines.append(_line("dropped", ", ".join(f"{name} {count:,}" for name, count in report["dropped"].items())))
    if report["truncated"]:
        answers = report["truncated_answers"]
        lines.append(_line("cut", f"{report['truncated']:,} too long; {answers:,} of them lost part of an answer"))
    lines += _copies("copies", report["duplicates"], report["dropped"])
    if report["overlap"]:
        lines += _copies("overlap", report["overlap"], report["dropped"])
    lines += _histogram(report["length_tokens"])
    return "\n".join(columns.cut(line, MAX_COLUMNS) for line in lines)


def short(place: str) -> str:
    """Returns a path as one would type it from here, its beginning left out when it is long."""
    place = place.removeprefix(f"{Path.cwd()}/")
    return place if len(place) <= _PATH_COLUMNS else "..." + place[3 - _PATH_COLUMNS :]


def _sources(report: Mapping[str, Any]) -> list[str]:
    lines = []
    for source in report["sources"][:_SHOWN_SOURCES]:
        text = f"{source['format']}: {source['rows']:,} rows of {short(source['file'])} ({source['why']})"
        lines.append(_line("format", text))
    if len(report["sources"]) > _SHOWN_SOURCES:
        more = report["sources"][_SHOWN_SOURCES:]
        lines.append(_line("", f"{sum(source['rows'] for source in more):,} rows of {len(more):,} more files"))
    return lines


def _copies(label: str, copies: Mapping[str, Any], dropped: Mapping[str, int]) -> list[str]:
    if not copies["exact"] and not copies["near"]:
        return []
    where, reason = {"copies": ("", "duplicate"), "overlap": (" of eval rows", "in-eval")}[label]
    hint = ["data.drop_duplicates=true leaves out the exact ones"] if copies["exact"] and reason not in dropped else []
    first = copies["examples"][0]
    of = first["of"]
    there = f"line {of['line']}" if of["file"] == first["file"] else f"{short(of['file'])}:{of['line']}"
    return [
        _line(label, f"{copies['exact']:,} exact and {copies['near']:,} near copies{where}"),
        _line("", f"such as {short(first['file'])}:{first['line']} of {there}"),
        *(_line("", text) for text in hint),
    ]


def _line(label: str, text: str) -> str:
    return f"  {label:<8} {text}"


def _counts(sizes: Mapping[str, Any]) -> str:
    tokens, trained = sizes["tokens"], sizes["trained_tokens"]
    return f"{sizes['samples']:,} samples, {tokens:,} tokens, {trained:,} of them trained ({trained / tokens:.1%})"


def _histogram(table: Mapping[str, Any]) -> list[str]:
    head = f"min {table['min']:,}, median {table['median']:,}, max {table['max']:,} tokens"
    labels = [f"{low:,}-{high:,}" for low, high in pairwise(table["bounds"])]
    width = max(len(label) for label in labels)
    most = max(table["counts"])
    lines = [_line("length", head)]
    for label, count in zip(labels, table["counts"], strict=True):
        # A bar is shown for every count, however small beside the others.
        bar = "#" * max(round(_BAR_COLUMNS * count / most), int(count > 0))
        lines.append(f"           {label:>{width}} {bar:<{_BAR_COLUMNS}} {count:,}")
    return lines
