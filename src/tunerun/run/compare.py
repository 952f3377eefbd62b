"""What differs between two runs: config, data, base model, environment, metrics and artifacts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunerun import artifacts, columns
from tunerun.base_model import read_teacher
from tunerun.columns import MAX_COLUMNS
from tunerun.config import typed
from tunerun.run.results import Results

Section = Literal["config", "base model", "data", "environment", "metrics", "artifacts"]

RESULTS: tuple[Section, ...] = ("metrics", "artifacts")
"""Sections that say whether two runs came to the same; the others say why not."""

CAUSES: tuple[Section, ...] = ("base model", "data", "environment")
"""Sections of what a run found when it began."""

TEACHER = "teacher sha256"

# Where a run was made, what it was held to and how long it took say nothing about what it came to.
_PLACES = ("run_dir", "lock")
_TIMES = frozenset({"seconds", "tokens_per_second", "eta_seconds", "peak_memory_bytes", "gpu_utilisation", "mfu"})
# These hold such times or absolute paths; what counts in them is compared by itself.
_COMPARED_BY_CONTENT = frozenset({artifacts.METRICS, artifacts.MODEL, artifacts.TEACHER})
_KEY_COLUMNS = 36
_MISSING = "-"


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that two runs do not share."""

    section: Section
    key: str
    first: str
    """As the first run has it; a dash where it has none."""
    second: str


def differences(first: Results, second: Results) -> list[Difference]:
    """Finds what differs between two runs, section by section."""
    found: list[Difference] = []
    for section, facts in _FACTS.items():
        found += compare(section, dict(facts(first)), dict(facts(second)))
    return found


def compare(section: Section, first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """Finds the keys whose values differ, in order of the first mapping and then the second."""
    keys = [*first, *(key for key in second if key not in first)]
    return [
        Difference(section, key, _shown(first, key), _shown(second, key))
        for key in keys
        if key not in first or key not in second or first[key] != second[key]
    ]


def section_of(name: str) -> Section:
    """Returns where a file of the user's belongs.

    Args:
        name: `key path`, as a record has it.
    """
    return "base model" if name.startswith("model.") else "data"


def environment(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Returns code, packages, machine and variables of a record by dotted key."""
    facts = {key: value for key, value in provenance.items() if key != "git"}
    git = provenance.get("git")
    if git is not None:
        facts["code"] = {"commit": git["commit"], "changes": git["diff"] or "none"}
    return typed.flatten(facts)


def render(found: Sequence[Difference], names: tuple[str, str]) -> str:
    """Lays differences out as a table, at most 100 columns wide.

    Args:
        found: From `differences`.
        names: Of the two runs.
    """
    if not found:
        return "no differences"
    room = (MAX_COLUMNS - _KEY_COLUMNS - 6) // 2
    lines = [_row("", names[0], names[1], room)]
    for section in dict.fromkeys(item.section for item in found):
        lines.append(section)
        lines += [_row(item.key, item.first, item.second, room) for item in found if item.section == section]
    return "\n".join(lines)


def _row(key: str, first: str, second: str, room: int) -> str:
    cells = (columns.pad(columns.cut(key, _KEY_COLUMNS), _KEY_COLUMNS), columns.pad(columns.cut(first, room), room))
    return "  ".join(["", *cells, columns.cut(second, room)]).rstrip()


def _shown(facts: Mapping[str, Any], key: str) -> str:
    if key not in facts:
        return _MISSING
    value = facts[key]
    text = f"{value:.6g}" if isinstance(value, float) else "null" if value is None else str(value)
    return " ".join(text.split()) or "''"


def _config(run: Results) -> Iterator[tuple[str, Any]]:
    for key, value in typed.flatten(typed.plain(run.config)).items():
        if key.partition(".")[0] not in _PLACES:
            yield key, value


def _base_model(run: Results) -> Iterator[tuple[str, Any]]:
    yield from (run.record.base_model or {}).items()
    if (run.run_dir / artifacts.TEACHER).is_file():
        yield TEACHER, read_teacher(run.run_dir).sha256
    yield from _files(run, "base model")


def _data(run: Results) -> Iterator[tuple[str, Any]]:
    yield from _files(run, "data")
    for key, digest in run.record.data.items():
        if key not in run.record.files:
            yield "prepared data" if key == "data" else key, digest[:12]


def _files(run: Results, section: Section) -> Iterator[tuple[str, Any]]:
    yield from ((name, digest[:12]) for name, digest in run.record.files.items() if section_of(name) == section)


def _environment(run: Results) -> Iterator[tuple[str, Any]]:
    yield from environment(run.record.provenance).items()


def _metrics(run: Results) -> Iterator[tuple[str, Any]]:
    # By step and name; of several thousand steps the first that differs is enough.
    rows = [{key: value for key, value in row.items() if key not in _TIMES} for row in run.metrics if len(row) > 1]
    yield "steps", max((row["step"] for row in rows), default=0)
    losses = [row["loss"] for row in rows if "loss" in row]
    if losses:
        yield "training loss, first", losses[0]
        yield "training loss, last", losses[-1]
    yield "all of metrics.jsonl but times", _digest(rows)
    for model in ("base", "tuned"):
        measured = run.measured(model)
        if measured is not None:
            yield f"{model} loss", measured["loss"]
            yield f"{model} answers", _digest(measured["answers"])
    for item in run.tasks():
        yield f"{item.task} {item.metric}", " -> ".join(item.texts)


def _artifacts(run: Results) -> Iterator[tuple[str, Any]]:
    for stage in run.record.stages.values():
        for item in stage.artifacts:
            if item.path not in _COMPARED_BY_CONTENT:
                yield item.path, item.sha256[:12]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


_FACTS: dict[Section, Callable[[Results], Iterator[tuple[str, Any]]]] = {
    "config": _config,
    "base model": _base_model,
    "data": _data,
    "environment": _environment,
    "metrics": _metrics,
    "artifacts": _artifacts,
}
