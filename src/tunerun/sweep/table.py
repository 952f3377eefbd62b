"""The table of a sweep: its trials by rank, as JSON, CSV, Markdown and a page with plots."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from tunerun import artifacts, columns, markdown
from tunerun.config import typed
from tunerun.errors import Problem, UserError
from tunerun.launch.terminal import duration
from tunerun.run import charts, page
from tunerun.run.charts import number
from tunerun.run.summary import short
from tunerun.sweep import plots
from tunerun.sweep.importance import Importances
from tunerun.sweep.measures import better
from tunerun.sweep.trials import Outcome

RESULTS = "results"
_SCHEMA = 3
_FINISHED = ("done", "skipped")
_MOST_DIGITS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """What came of a sweep."""

    rows: Sequence[Outcome]
    """Of its trials."""
    metrics: Sequence[str]
    """What ranks them."""
    importances: Importances = field(default_factory=Importances)
    """How much each key matters to the first metric."""


def finished(rows: Sequence[Outcome]) -> list[Outcome]:
    """Returns the trials that ended well."""
    return [row for row in rows if row.status in _FINISHED]


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
    good = [row for row in finished(ranked(rows, metrics)) if _is_measured(row, metrics)]
    return good[0] if good else None


def why_none(rows: Sequence[Outcome], metrics: Sequence[str]) -> str:
    """Says why there is no winner, and what could be compared instead."""
    measured = list(dict.fromkeys(key for row in finished(rows) for key in row.metrics))
    instead = f"; they have {', '.join(measured)} (sweep.metric)" if measured else ""
    return f"no trial that ended well has {' and '.join(metrics)}{instead}"


def ending(found: Table, sweep: str) -> str:
    """Says how to have the best trial of a sweep that is over, or why there is none.

    Args:
        found: What came of it.
        sweep: Its directory, as the user would type it.
    """
    if best(found.rows, found.metrics) is None:
        return f"there is no best one: {why_none(found.rows, found.metrics)}"
    return f"the best as a recipe: tunerun sweep best {sweep}"


def _fronts(rows: Sequence[Outcome], metrics: Sequence[str]) -> list[list[Outcome]]:
    """Divides measured trials into fronts: those that none beats, those that only these beat, and so on (Pareto)."""
    left = [row for row in finished(rows) if _is_measured(row, metrics)]
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


def write(sweep_dir: Path, found: Table) -> None:
    """Writes results.json, .csv, .md and .html of a sweep."""
    order = ranked(found.rows, found.metrics)
    data = {
        "schema": _SCHEMA,
        "metrics": {name: better(name) for name in found.metrics},
        "importances": typed.plain(found.importances),
        "trials": [_plain(row, rank, found.metrics) for rank, row in enumerate(order, start=1)],
    }
    artifacts.write_json(sweep_dir / f"{RESULTS}.json", data)
    head, cells = _cells(order)
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([head, *cells])
    artifacts.write_text(sweep_dir / f"{RESULTS}.csv", stream.getvalue())
    artifacts.write_text(sweep_dir / f"{RESULTS}.md", markdown.table(head, cells) + "\n" + _dependence(found, "\n"))
    artifacts.write_text(sweep_dir / f"{RESULTS}.html", _page(sweep_dir.name, order, found))


def read(sweep_dir: Path) -> Table:
    """Reads results.json, the rows by rank.

    Raises:
        UserError: There is none, or it is damaged, or was written by a newer tunerun.
    """
    path = sweep_dir / f"{RESULTS}.json"
    if not path.is_file():
        if artifacts.is_sweep(sweep_dir):
            fix = f"If it does not run any more: tunerun resume {short(sweep_dir)}"
            raise UserError(Problem(where=str(sweep_dir), what="no trial of the sweep has ended yet.", fix=fix))
        what = f"is not the directory of a sweep: {f'no {path.name}' if sweep_dir.is_dir() else 'it is not there'}."
        raise UserError(Problem(where=str(sweep_dir), what=what, fix="`ls outputs/sweeps` lists the sweeps."))
    schema, data = artifacts.read_versioned(path, _SCHEMA)
    # Schema 1 had one metric; before schema 3, nothing said how the importances were found.
    metrics = tuple(data["metrics"]) if schema > 1 else (data["metric"],)
    importances = Importances(**data["importances"]) if schema > 2 else Importances()
    keys = ("trial", "parameters", "status", "exit_code", "seconds", "metrics")
    rows = [Outcome(**{key: trial[key] for key in keys}) for trial in data["trials"]]
    return Table(rows=rows, metrics=metrics, importances=importances)


def render(found: Table) -> str:
    """Lays the ranked trials out for a terminal, 100 columns wide at most; says what the first metric depends on."""
    metrics, order = found.metrics, ranked(found.rows, found.metrics)
    names = list(dict.fromkeys(key for row in order for key in row.parameters))
    head = ["trial", *metrics, "took", "state", *names]
    cells = [
        [
            str(row.trial),
            *(number(row.metrics[name]) if name in row.metrics else "-" for name in metrics),
            duration(row.seconds),
            row.status,
            *(_brief(row.parameters.get(key, "")) for key in names),
        ]
        for row in order
    ]
    lines = [head, *cells]
    widths = [max(columns.width(line[index]) for line in lines) for index in range(len(head))]
    padded = [[columns.pad(cell, room) for cell, room in zip(line, widths, strict=True)] for line in lines]
    shown = "\n".join(columns.cut("  ".join(line).rstrip(), columns.MAX_COLUMNS) for line in padded)
    return f"{shown}{_dependence(found, chr(10) * 2)}".rstrip()


def _brief(value: str) -> str:
    """Shortens a number that a search drew; the files have all of its digits."""
    try:
        return f"{float(value):.4g}" if len(value) > _MOST_DIGITS else value
    except ValueError:
        return value


def _dependence(found: Table, before: str) -> str:
    """Returns a line on what the first metric depends on; empty when there is nothing to say."""
    metric, importances = found.metrics[0], found.importances
    if importances.lack:
        return f"{before}what {metric} depends on cannot be told: {importances.lack}\n"
    return f"{before}what {metric} depends on: {importances.text}\n" if importances.shares else ""


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
            *((_brief(row.parameters.get(key, "")), "") for key in names),
            *((number(row.metrics[key], 5) if key in row.metrics else "", "number") for key in measured),
            (duration(row.seconds), "number"),
            (row.status, ""),
        ]
        for rank, row in enumerate(order, start=1)
    ]
    return page.table(["rank", "trial", *names, *measured, "took", "state"], rows) if rows else ""


def _page(name: str, order: Sequence[Outcome], found: Table) -> str:
    metrics, importances = found.metrics, found.importances
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
    if importances.shares:
        drawn = f"{charts.panel(plots.importances(importances.shares))}<p>{escape(importances.method)}</p>"
        parts.append(page.section(f"What {metrics[0]} depends on", drawn))
    elif importances.lack:
        told = f"<p>cannot be told: {escape(importances.lack)}</p>"
        parts.append(page.section(f"What {metrics[0]} depends on", told))
    parts.append(page.section("Trials", _trials(order)))
    return page.render(f"sweep {name}", parts)
