"""The table of a sweep: its trials by rank, as JSON, CSV, Markdown and a page with plots."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tunerun import artifacts, columns
from tunerun.errors import Problem, UserError
from tunerun.launch.terminal import duration
from tunerun.run import charts, page
from tunerun.run.charts import number
from tunerun.run.summary import short
from tunerun.sweep import plots
from tunerun.sweep.measures import better
from tunerun.sweep.trials import Outcome, is_sweep

RESULTS = "results"
_SCHEMA = 2
_FINISHED = ("done", "skipped")


def ranked(rows: Sequence[Outcome], metrics: Sequence[str]) -> list[Outcome]:
    """Returns the rows with the best first: finished trials before others, then those without a measure.

    With several metrics, a trial that is beaten in all of them by none comes first; among equals the first metric
    decides.
    """
    front = {row.trial: number for number, trials in enumerate(_fronts(rows, metrics)) for row in trials}

    def place(row: Outcome) -> tuple[bool, float, float, int]:
        value = _cost(row, metrics[0]) if metrics[0] in row.metrics else math.inf
        return row.status not in _FINISHED, front.get(row.trial, math.inf), value, row.trial

    return sorted(rows, key=place)


def best(rows: Sequence[Outcome], metrics: Sequence[str]) -> Outcome | None:
    """Returns the winner among the trials that ended well; None when none has the metrics."""
    good = [row for row in ranked(rows, metrics) if _is_measured(row, metrics) and row.status in _FINISHED]
    return good[0] if good else None


def why_none(rows: Sequence[Outcome], metrics: Sequence[str]) -> str:
    """Says why there is no winner, and what could be compared instead."""
    measured = list(dict.fromkeys(key for row in rows if row.status in _FINISHED for key in row.metrics))
    instead = f"; they have {', '.join(measured)} (sweep.metric)" if measured else ""
    return f"no trial that ended well has {' and '.join(metrics)}{instead}"


def _fronts(rows: Sequence[Outcome], metrics: Sequence[str]) -> list[list[Outcome]]:
    """Divides measured trials into fronts: those that none beats, those that only these beat, and so on (Pareto)."""
    left = [row for row in rows if _is_measured(row, metrics) and row.status in _FINISHED]
    fronts: list[list[Outcome]] = []
    while left:
        fronts.append([row for row in left if not any(_beats(other, row, metrics) for other in left)])
        left = [row for row in left if row not in fronts[-1]]
    return fronts


def _beats(first: Outcome, second: Outcome, metrics: Sequence[str]) -> bool:
    pairs = [(_cost(first, name), _cost(second, name)) for name in metrics]
    return all(one <= other for one, other in pairs) and any(one < other for one, other in pairs)


def _cost(row: Outcome, metric: str) -> float:
    return row.metrics[metric] if better(metric) == "lower" else -row.metrics[metric]


def _is_measured(row: Outcome, metrics: Sequence[str]) -> bool:
    return all(name in row.metrics for name in metrics)


def write(
    sweep_dir: Path, rows: Sequence[Outcome], metrics: Sequence[str], importances: Mapping[str, float] | None = None
) -> None:
    """Writes results.json, .csv, .md and .html of a sweep.

    Args:
        sweep_dir: Of the sweep.
        rows: What came of its trials.
        metrics: What ranks them.
        importances: How much each key matters to the first metric, from 0 to 1.
    """
    order = ranked(rows, metrics)
    data = {
        "schema": _SCHEMA,
        "metrics": {name: better(name) for name in metrics},
        "importances": dict(importances or {}),
        "trials": [_plain(row, rank, metrics) for rank, row in enumerate(order, start=1)],
    }
    artifacts.write_json(sweep_dir / f"{RESULTS}.json", data)
    head, cells = _cells(order)
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([head, *cells])
    artifacts.write_text(sweep_dir / f"{RESULTS}.csv", stream.getvalue())
    artifacts.write_text(sweep_dir / f"{RESULTS}.md", _markdown(head, cells))
    artifacts.write_text(sweep_dir / f"{RESULTS}.html", _page(sweep_dir.name, order, metrics, importances or {}))


def read(sweep_dir: Path) -> tuple[list[Outcome], tuple[str, ...]]:
    """Reads results.json: the rows by rank, and the metrics that rank them.

    Raises:
        UserError: There is none, or it is damaged, or was written by a newer tunerun.
    """
    path = sweep_dir / f"{RESULTS}.json"
    if not path.is_file():
        if is_sweep(sweep_dir):
            fix = f"If it does not run any more: tunerun resume {short(sweep_dir)}"
            raise UserError(Problem(where=str(sweep_dir), what="no trial of the sweep has ended yet.", fix=fix))
        raise UserError(Problem(where=str(sweep_dir), what=f"is not the directory of a sweep: no {path.name}."))
    schema, data = artifacts.read_versioned(path, _SCHEMA)
    # Schema 1 had one metric.
    metrics = tuple(data["metrics"]) if schema > 1 else (data["metric"],)
    keys = ("trial", "parameters", "status", "exit_code", "seconds", "metrics")
    return [Outcome(**{key: trial[key] for key in keys}) for trial in data["trials"]], metrics


def render(rows: Sequence[Outcome], metrics: Sequence[str]) -> str:
    """Lays the ranked trials out for a terminal, at most 100 columns wide."""
    order = ranked(rows, metrics)
    names = list(dict.fromkeys(key for row in order for key in row.parameters))
    head = ["trial", *metrics, "took", "state", *names]
    cells = [
        [
            str(row.trial),
            *(number(row.metrics[name]) if name in row.metrics else "-" for name in metrics),
            duration(row.seconds),
            row.status,
            *(row.parameters.get(key, "") for key in names),
        ]
        for row in order
    ]
    lines = [head, *cells]
    widths = [max(columns.width(line[index]) for line in lines) for index in range(len(head))]
    padded = [[columns.pad(cell, room) for cell, room in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(columns.cut("  ".join(line).rstrip(), columns.MAX_COLUMNS) for line in padded)


def _plain(row: Outcome, rank: int, metrics: Sequence[str]) -> dict[str, Any]:
    return {
        "rank": rank if _is_measured(row, metrics) else None,
        "trial": row.trial,
        "parameters": dict(row.parameters),
        "status": row.status,
        "exit_code": row.exit_code,
        "seconds": round(row.seconds, 3),
        "metrics": dict(row.metrics),
    }


def _cells(order: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
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


def _trials(order: Sequence[Outcome]) -> str:
    """Lays the trials out to be read; the other tables have every digit."""
    names = list(dict.fromkeys(key for row in order for key in row.parameters))
    measured = list(dict.fromkeys(key for row in order for key in row.metrics))
    rows = [
        [
            (rank, "number"),
            (row.trial, "number"),
            *((row.parameters.get(key, ""), "") for key in names),
            *((number(row.metrics[key], 5) if key in row.metrics else "", "number") for key in measured),
            (duration(row.seconds), "number"),
            (row.status, ""),
        ]
        for rank, row in enumerate(order, start=1)
    ]
    return page.table(["rank", "trial", *names, *measured, "took", "state"], rows) if rows else ""


def _markdown(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _page(name: str, order: Sequence[Outcome], metrics: Sequence[str], importances: Mapping[str, float]) -> str:
    about = f"{len(order)} trials by {', '.join(f'{metric} ({better(metric)} is better)' for metric in metrics)}"
    parts = [f"<header><h1>Sweep {escape(name)}</h1><p>{escape(about)}</p></header>"]
    for metric in metrics:
        measured = [row for row in order if metric in row.metrics]
        if not measured:
            continue
        history = sorted((float(row.trial), row.metrics[metric]) for row in measured)
        parts.append(page.section(f"{metric} by trial", plots.history(history, metric, better(metric))))
        lines = [(row.parameters, row.metrics[metric]) for row in measured]
        parts.append(page.section(f"Parameters and {metric}", charts.panel(plots.parallel(lines, metric))))
    if importances:
        parts.append(page.section(f"What {metrics[0]} depends on", charts.panel(plots.importances(importances))))
    parts.append(page.section("Trials", _trials(order)))
    return page.render(f"sweep {name}", parts)
