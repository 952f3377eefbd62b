"""The table of a sweep: its trials by rank, as JSON, CSV, Markdown and a page with plots."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from tunerun import artifacts, columns
from tunerun.errors import Problem, UserError
from tunerun.launch.terminal import MAX_COLUMNS, duration
from tunerun.run import page
from tunerun.run.charts import number
from tunerun.sweep import plots
from tunerun.sweep.measures import better

RESULTS = "results"
_SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What came of one trial."""

    trial: int
    parameters: Mapping[str, str]
    """Value by varied key."""
    status: str
    """As `tunerun runs` shows it, or `waiting`."""
    exit_code: int | None
    seconds: float
    metrics: Mapping[str, float]


def ranked(rows: Sequence[Row], metric: str) -> list[Row]:
    """Returns the rows with the best first; those without the metric come last, in order of trial."""
    sign = 1.0 if better(metric) == "lower" else -1.0
    return sorted(rows, key=lambda row: (sign * row.metrics[metric] if metric in row.metrics else math.inf, row.trial))


def best(rows: Sequence[Row], metric: str) -> Row | None:
    """Returns the winner among the trials that ended well; None when none has the metric."""
    good = [row for row in ranked(rows, metric) if metric in row.metrics and row.status in ("done", "skipped")]
    return good[0] if good else None


def write(sweep_dir: Path, rows: Sequence[Row], metric: str) -> None:
    """Writes results.json, .csv, .md and .html of a sweep."""
    order = ranked(rows, metric)
    data = {
        "schema": _SCHEMA,
        "metric": metric,
        "better": better(metric),
        "trials": [_plain(row, rank, metric) for rank, row in enumerate(order, start=1)],
    }
    artifacts.write_json(sweep_dir / f"{RESULTS}.json", data)
    head, cells = _cells(order)
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([head, *cells])
    artifacts.write_text(sweep_dir / f"{RESULTS}.csv", stream.getvalue())
    artifacts.write_text(sweep_dir / f"{RESULTS}.md", _markdown(head, cells))
    artifacts.write_text(sweep_dir / f"{RESULTS}.html", _page(sweep_dir.name, order, metric))


def read(sweep_dir: Path) -> tuple[list[Row], str]:
    """Reads results.json: the rows by rank, and the metric that ranks them.

    Raises:
        UserError: There is none, or it is of another tunerun.
    """
    path = sweep_dir / f"{RESULTS}.json"
    if not path.is_file():
        raise UserError(Problem(where=str(sweep_dir), what=f"is not the directory of a sweep: no {path.name}."))
    data = artifacts.read_json(path)
    if data["schema"] != _SCHEMA:
        what = f"was written by another tunerun (schema {data['schema']}, this one reads {_SCHEMA})."
        raise UserError(Problem(where=str(path), what=what))
    keys = ("trial", "parameters", "status", "exit_code", "seconds", "metrics")
    return [Row(**{key: trial[key] for key in keys}) for trial in data["trials"]], data["metric"]


def render(rows: Sequence[Row], metric: str) -> str:
    """Lays the ranked trials out for a terminal, at most 100 columns wide."""
    order = ranked(rows, metric)
    names = list(dict.fromkeys(key for row in order for key in row.parameters))
    head = ["trial", metric, "took", "state", *names]
    cells = [
        [
            str(row.trial),
            number(row.metrics[metric]) if metric in row.metrics else "-",
            duration(row.seconds),
            row.status,
            *(row.parameters.get(key, "") for key in names),
        ]
        for row in order
    ]
    lines = [head, *cells]
    widths = [max(columns.width(line[index]) for line in lines) for index in range(len(head))]
    padded = [[columns.pad(cell, room) for cell, room in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(columns.cut("  ".join(line).rstrip(), MAX_COLUMNS) for line in padded)


def _plain(row: Row, rank: int, metric: str) -> dict[str, Any]:
    return {
        "rank": rank if metric in row.metrics else None,
        "trial": row.trial,
        "parameters": dict(row.parameters),
        "status": row.status,
        "exit_code": row.exit_code,
        "seconds": round(row.seconds, 3),
        "metrics": dict(row.metrics),
    }


def _cells(order: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    names = list(dict.fromkeys(key for row in order for key in row.parameters))
    measured = list(dict.fromkeys(key for row in order for key in row.metrics))
    head = ["rank", "trial", *names, *measured, "seconds", "status"]
    cells = [
        [
            str(rank),
            str(row.trial),
            *(row.parameters.get(key, "") for key in names),
            *(repr(row.metrics[key]) if key in row.metrics else "" for key in measured),
            f"{row.seconds:.1f}",
            row.status,
        ]
        for rank, row in enumerate(order, start=1)
    ]
    return head, cells


def _markdown(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _page(name: str, order: Sequence[Row], metric: str) -> str:
    about = f"{len(order)} trials by {metric}, {better(metric)} is better"
    parts = [f"<header><h1>Sweep {escape(name)}</h1><p>{escape(about)}</p></header>"]
    measured = [row for row in order if metric in row.metrics]
    if measured:
        history = sorted((float(row.trial), row.metrics[metric]) for row in measured)
        parts.append(_section(f"{metric} by trial", plots.history(history, metric, better(metric))))
        lines = [(row.parameters, row.metrics[metric]) for row in measured]
        parts.append(_section(f"Parameters and {metric}", plots.parallel(lines, metric)))
    head, cells = _cells(order)
    body = "".join(f"<tr>{_row_html('td', row)}</tr>" for row in cells)
    parts.append(
        _section("Trials", f"<table><thead><tr>{_row_html('th', head)}</tr></thead><tbody>{body}</tbody></table>")
    )
    return page.render(f"sweep {name}", parts)


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _row_html(tag: str, cells: Sequence[str]) -> str:
    return "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)
