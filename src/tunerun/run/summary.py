"""What a run prints at its end: better or not, what it answers now, and what to do next."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from tunerun import artifacts, columns
from tunerun.columns import MAX_COLUMNS
from tunerun.formats.verdicts import VERIFY_REPORT
from tunerun.launch.terminal import size
from tunerun.run import results
from tunerun.run.results import Results

_QUESTIONS = 3
_TASKS = 12
_ANSWER_LINES = 4


def render(run_dir: Path, name: str) -> str:
    """Lays out the summary of a finished run, at most 100 columns wide.

    Args:
        run_dir: The run directory.
        name: Of the run.
    """
    found = results.read(run_dir)
    blocks = ["\n".join(block) for block in (_files(found), _next(found)) if block]
    return "\n\n".join([f"{name}: done", *measured(found), *blocks])


def measured(found: Results) -> list[str]:
    """Lays out what a run found out about its model: losses, tasks, answers and checks, a paragraph each."""
    blocks = (_loss(found), _tasks(found), _answers(found), _verdict(found))
    return ["\n".join(block) for block in blocks if block]


def short(path: Path) -> str:
    """Returns a path as one would type it from here, in quotes where a shell wants them."""
    relative = os.path.relpath(path)
    typed = os.path.normpath(path) if relative.startswith("..") else relative
    # shlex would quote Chinese, too.
    return shlex.quote(typed) if re.search(r"[^\w@%+=:,./-]", typed) else typed


def _loss(found: Results) -> list[str]:
    base, tuned = found.measured("base"), found.measured("tuned")
    if found.evaluation is None or base is None:
        return []
    count, split = found.evaluation["rows"], "held-out" if found.evaluation["split"] == "eval" else "training"
    rows = f"{count:,} {split} row{'' if count == 1 else 's'}"
    if tuned is None:
        return [f"loss on {rows}: {digits(base['loss'])} (perplexity {digits(base['perplexity'])})"]
    losses = f"{digits(base['loss'])} before, {digits(tuned['loss'])} after"
    return [f"loss on {rows}: {losses} (perplexity {digits(base['perplexity'])} -> {digits(tuned['perplexity'])})"]


def _tasks(found: Results) -> list[str]:
    rows = [(f"{item.task} {item.metric}", " -> ".join(item.texts)) for item in found.tasks()]
    wide = max((columns.width(name) for name, _ in rows), default=0)
    lines = [columns.cut(f"{columns.pad(name, wide)}  {values}", MAX_COLUMNS) for name, values in rows[:_TASKS]]
    more = len(rows) - len(lines)
    return [*lines, f"and {more:,} more in {short(found.run_dir / artifacts.REPORT)}"] if more else lines


def digits(value: float | None) -> str:
    """Returns a measure with four digits; None stands for one that was not finite."""
    return "not finite" if value is None else f"{value:.4g}"


def _answers(found: Results) -> list[str]:
    lines: list[str] = []
    for prompt, base, tuned in found.answers()[:_QUESTIONS]:
        if tuned is None:
            lines += ["", *columns.wrap(f"> {prompt}", MAX_COLUMNS, 2)]
            lines += columns.wrap(base, MAX_COLUMNS, _ANSWER_LINES)
            continue
        if not lines:
            lines = columns.side_by_side(("BASE", "TUNED"), MAX_COLUMNS, 1)
        lines += ["", *columns.wrap(f"> {prompt}", MAX_COLUMNS, 2)]
        lines += columns.side_by_side((base, tuned), MAX_COLUMNS, _ANSWER_LINES)
    return lines if lines[:1] != [""] else lines[1:]


def _verdict(found: Results) -> list[str]:
    if found.verification is None:
        return []
    gates = found.verification["gates"]
    counts = [
        (verdict, sum(gate["verdict"] == verdict for gate in gates)) for verdict in ("pass", "not_proved", "fail")
    ]
    listing = ", ".join(f"{count} {verdict.replace('_', ' ')}" for verdict, count in counts if count)
    return [f"verified: {listing} (details: {short(found.run_dir / VERIFY_REPORT)})"]


def _files(found: Results) -> list[str]:
    rows = [
        (item.kind, item.path, size(item.bytes)) for entry in found.record.stages.values() for item in entry.artifacts
    ]
    rows += [("report", artifacts.REPORT, size((found.run_dir / artifacts.REPORT).stat().st_size))]
    rows += [("model card", artifacts.CARD, size((found.run_dir / artifacts.CARD).stat().st_size))]
    kind_columns, path_columns = (max(columns.width(row[index]) for row in rows) for index in (0, 1))
    lines = [f"in {short(found.run_dir)}:"]
    lines += [
        columns.cut(f"  {columns.pad(kind, kind_columns)}  {columns.pad(path, path_columns)}  {amount:>8}", MAX_COLUMNS)
        for kind, path, amount in rows
    ]
    return lines


def _next(found: Results) -> list[str]:
    run = short(found.run_dir)
    lines = []
    writes = found.config.objective.kind != "reward"
    made = [entry.artifacts for stage, entry in found.record.stages.items() if stage in ("train", "merge", "export")]
    if writes and any(made):
        lines = [f"chat:   tunerun chat {run}", f"serve:  tunerun serve {run}"]
    elif "answer" in found.record.stages:
        lines = [f"train:  data.path={short(found.run_dir / artifacts.ANSWERS)}"]
    if "train" not in found.record.stages:
        return lines
    return [
        *lines,
        "yours:  add data.path=YOUR.jsonl to the command; for a larger model, and a GPU:",
        "        tunerun plan +recipe=qwen2.5-lora model=qwen2.5-1.5b-instruct data.path=YOUR.jsonl",
    ]
