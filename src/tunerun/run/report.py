"""report.html: one self-contained page on a run; parts whose stage did not run are left out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tunerun import artifacts, redact
from tunerun.launch.terminal import duration, size
from tunerun.run import charts, page, results
from tunerun.run.charts import Point, Series, number
from tunerun.run.page import Html, section, table
from tunerun.run.results import Results

_VERDICTS = {"pass": "good", "fail": "bad", "not_proved": "open"}
_STATUS = {
    "done": "good",
    "skipped": "good",
    "failed": "bad",
    **dict.fromkeys(("running", "preempted", "pruned"), "open"),
}
_MAX_VALUE_CHARACTERS = 32


def write(run_dir: Path, secrets: tuple[str, ...]) -> None:
    """Writes report.html from the run's files.

    Args:
        run_dir: The run directory.
        secrets: Values that must not appear, from `redact.secret_values`.
    """
    artifacts.write_text(run_dir / artifacts.REPORT, redact.values(render(results.read(run_dir)), secrets))


def render(found: Results) -> str:
    """Lays the page out."""
    sections = [
        _header(found),
        _curves(found),
        _tasks(found),
        _answers(found),
        _teacher(found),
        _data(found),
        _gates(found),
        _stages(found),
        _files(found),
        _settings(found),
        _environment(found),
    ]
    return page.render(f"{found.record.name}: run report", sections)


def _header(found: Results) -> str:
    config, entry = found.config, found.record
    what = [f"{config.objective.kind} with {config.method.kind}"] if "train" in entry.stages else []
    what += [f"base model {found.base_model}"] if found.base_model is not None else []
    what += [entry.created[:16].replace("T", " ") + " UTC"]
    return (
        f"<header><h1>{escape(entry.name)}{_badge(entry.status, _STATUS[entry.status])}</h1>"
        f"<p>{escape(' · '.join(what))}</p><div class='tiles'>{''.join(_tiles(found))}</div></header>"
    )


def _tiles(found: Results) -> Iterable[str]:
    base, tuned = found.measured("base"), found.measured("tuned")
    if found.evaluation is not None and base is not None:
        where = "held-out rows" if found.evaluation["split"] == "eval" else "training rows"
        losses = [base["loss"]] if tuned is None else [base["loss"], tuned["loss"]]
        perplexities = [base["perplexity"]] if tuned is None else [base["perplexity"], tuned["perplexity"]]
        yield _tile("Loss, base → tuned" if tuned else "Loss", _arrow(losses), f"{found.evaluation['rows']:,} {where}")
        yield _tile("Perplexity", _arrow(perplexities), f"{found.evaluation['tokens']:,} tokens measured")
    steps = [row for row in found.metrics if "loss" in row]
    if steps:
        speeds = sorted(row["tokens_per_second"] for row in steps)
        yield _tile("Optimiser steps", f"{steps[-1]['step']:,}", f"{speeds[len(speeds) // 2]:,.0f} tokens/s (median)")
    times = [entry.seconds for entry in found.record.stages.values() if entry.seconds is not None]
    yield _tile("Time", duration(sum(times)), "all stages together")
    if found.verification is not None:
        gates = found.verification["gates"]
        passed = sum(gate["verdict"] == "pass" for gate in gates)
        open_gates = sum(gate["verdict"] == "not_proved" for gate in gates)
        detail = f"{open_gates} not proved" if open_gates else "gates between training and export"
        yield _tile("Verified", f"{passed} of {len(gates)}", detail)


def _curves(found: Results) -> str:
    train = Series(label="loss", points=_points(found.metrics, "loss"), style="first", noisy=True)
    held_out = Series(label="held-out loss", points=_points(found.metrics, "eval_loss"), style="second")
    if not train.points:
        return ""
    shown = [train, held_out] if held_out.points else [train]
    chart = charts.panel(charts.line_chart(shown, title="Loss by optimiser step", x_label="step"), legend=shown)
    small = [
        f'<div class="panel"><h3>{title}</h3>{_small_chart(found.metrics, key, title)}</div>'
        for key, title in (("learning_rate", "Learning rate"), ("grad_norm", "Gradient norm, before clipping"))
        if _points(found.metrics, key)
    ]
    return section("Training", f'{chart}<div class="pair">{"".join(small)}</div>{_scores(found)}')


def _scores(found: Results) -> str:
    """Returns what answers to held-out rows were worth while training."""
    lines = [
        Series(label=label, points=_points(found.metrics, key), style=style)
        for key, label, style in (("eval_rougeL", "ROUGE-L", "first"), ("eval_bleu4", "BLEU-4", "second"))
    ]
    if not lines[0].points:
        return ""
    title = "Answers to held-out rows"
    chart = charts.line_chart(lines, title=title, x_label="step", height=200)
    return f"<h3>{title}</h3>{charts.panel(chart, legend=lines)}"


def _small_chart(metrics: Sequence[Mapping[str, Any]], key: str, title: str) -> str:
    line = Series(label=title.lower(), points=_points(metrics, key), style="first", noisy=key == "grad_norm")
    return charts.line_chart([line], title=title, x_label="step", width=460, height=200)


def _tasks(found: Results) -> str:
    rows = found.tasks()
    if not rows:
        return ""
    head = ["Task", "Metric", "Base model"] + ([] if rows[0].tuned is None else ["Tuned model"])
    cells = [[(row.task, ""), (row.metric, ""), *((text, "number") for text in row.texts)] for row in rows]
    return section("Tasks", table(head, cells))


def _answers(found: Results) -> str:
    rows = found.answers()
    if not rows:
        return ""
    head = ["Question", "Base model", "Tuned model"] if rows[0][2] is not None else ["Question", "Answer"]
    cells = [[(text, "answer" if index else "") for index, text in enumerate(row) if text is not None] for row in rows]
    return section("Answers", table(head, cells))


def _teacher(found: Results) -> str:
    if found.teacher is None:
        return ""
    report, lost = found.teacher, sum(found.teacher["dropped"].values())
    tiles = [
        _tile("Rows made", f"{report['rows']:,}", f"from {report['prompts']:,} prompts, {lost:,} lost"),
        _tile("Tokens", f"{report['completion_tokens']:,}", f"answered, {report['prompt_tokens']:,} asked"),
        _tile("Cut off", f"{report['cut_off_kept']:,}", "answers kept though cut off"),
        _tile("Refusals", f"{report['look_like_refusals']:,}", "kept answers begin like one"),
    ]
    body = f'<div class="tiles">{"".join(tiles)}</div>'
    body += table(["Answered by", "Answers"], [[(name, ""), (n, "number")] for name, n in report["models"].items()])
    body += _reasons({**report["bad_prompts"], **report["dropped"]})
    if report["examples"]:
        rows = [[(item["where"], "path"), (item["reason"], ""), (item["detail"], "")] for item in report["examples"]]
        body += table(["Prompt", "Why", "What"], rows)
    return section("Teacher", body)


def _data(found: Results) -> str:
    report = found.failed_data if found.failed_data is not None else found.data
    if report is None:
        return ""
    body = f'<div class="tiles">{"".join(_data_tiles(report))}</div>'
    if found.failed_data is None and report["rows"]:
        body += f'<p class="note">{escape(results.training_volume(report, found.config.train))}.</p>'
    body += _sources(report) + _dropped(report)
    lengths = report["length_tokens"]
    if lengths is not None:
        chart = charts.histogram(lengths["bounds"], lengths["counts"], title="Samples by length", unit="tokens")
        head = f"Samples by length: {lengths['min']:,} to {lengths['max']:,} tokens, median {lengths['median']:,}"
        body += f'<div class="panel"><h3>{head}</h3>{chart}</div>'
    body += _examples(report)
    body += _copies("Rows that are copies of earlier ones", report["duplicates"])
    body += _copies("Training rows that are among the rows to evaluate on", report["overlap"])
    return section("Data", body)


def _data_tiles(report: Mapping[str, Any]) -> Iterable[str]:
    dropped = sum(report["dropped"].values())
    yield _tile("Rows read", f"{report['rows_read']:,}", f"{report['rows_kept']:,} kept, {dropped:,} dropped")
    if report["tokens"]:
        share = f"{report['trained_tokens'] / report['tokens']:.1%} of {report['tokens']:,}"
        yield _tile("Tokens trained", f"{report['trained_tokens']:,}", share)
    if report["eval"] is not None:
        yield _tile("Held out", f"{report['eval']['samples']:,}", "samples to evaluate on")
    answers = report["truncated_answers"]
    yield _tile("Cut to length", f"{report['truncated']:,}", f"samples; {answers:,} lost part of an answer")
    if report["duplicates"] is not None:
        copies = report["duplicates"]
        yield _tile("Copies", f"{copies['exact']:,}", f"exact copies of earlier rows, {copies['near']:,} near")
    if report["overlap"] is not None:
        overlap = report["overlap"]
        yield _tile("Overlap", f"{overlap['exact']:,}", f"training rows are eval rows, {overlap['near']:,} nearly")
    if report["packing_fill"] is not None:
        yield _tile("Packing", f"{report['packing_fill']:.1%}", "of each packed row is filled")
    if report["labels"] is not None:
        yield _tile("Good answers", f"{report['labels']['good']:,}", f"{report['labels']['bad']:,} bad ones")
    if report["sides"] is not None:
        chosen, rejected = (report["sides"][side]["tokens"] for side in ("chosen", "rejected"))
        yield _tile("Pairs", f"{report['rows']:,}", f"{chosen:,} tokens chosen, {rejected:,} rejected")


def _sources(report: Mapping[str, Any]) -> str:
    rows = [
        [
            (item["file"], "path"),
            (item["rows"], "number"),
            (f"{item['weight']:g}", "number"),
            (item["format"], ""),
            (item["why"], ""),
        ]
        for item in report["sources"]
    ]
    return table(["Source", "Rows", "Weight", "Format", "Found by"], rows) if rows else ""


def _dropped(report: Mapping[str, Any]) -> str:
    body = _reasons(report["dropped"])
    faults = [[(item["where"], "path"), (item["what"], "")] for item in report["unreadable"]]
    if faults:
        body += table(["Cannot be read", "Reason"], faults)
    return body


def _reasons(dropped: Mapping[str, int]) -> str:
    counts = [[(why, ""), (n, "number")] for why, n in dropped.items()]
    return table(["Dropped because", "Rows"], counts) if counts else ""


def _examples(report: Mapping[str, Any]) -> str:
    rows = [
        [(f"{item['file']}:{item['line']}", "path"), (item["reason"], ""), (item["detail"], "")]
        for item in report["examples"]
    ]
    if not rows:
        return ""
    listing = table(["Row", "Reason", "Detail"], rows)
    return f"<details><summary>Rows that were dropped or cut</summary>{listing}</details>"


def _copies(title: str, copies: Mapping[str, Any] | None) -> str:
    if copies is None or not copies["examples"]:
        return ""
    rows = [
        [
            (f"{item['file']}:{item['line']}", "path"),
            (f"{item['of']['file']}:{item['of']['line']}", "path"),
            ("exact" if item["exact"] else f"about {item['similarity']:.0%}", ""),
        ]
        for item in copies["examples"]
    ]
    return f"<details><summary>{title}</summary>{table(['Row', 'Copy of', 'Alike'], rows)}</details>"


def _gates(found: Results) -> str:
    if found.verification is None:
        return ""
    rows = [
        [
            (_gate(gate["name"]), "path"),
            (Html(_badge(gate["verdict"].replace("_", " "), _VERDICTS[gate["verdict"]])), ""),
            (_values(gate["measured"]), "values"),
            (_values(gate["bound"]), "values"),
            (gate["reason"], ""),
        ]
        for gate in found.verification["gates"]
    ]
    return section("Verification", table(["Gate", "Verdict", "Measured", "Bound", "Reason"], rows))


def _gate(name: str) -> str:
    """Writes a gate's name in words, and that of the file that it looks at as it is."""
    gate, colon, file = name.partition(":")
    return f"{gate.replace('_', ' ')}{colon}{file}"


def _stages(found: Results) -> str:
    rows = [
        [
            (stage, ""),
            (Html(_badge(entry.status, _STATUS[entry.status])), ""),
            (entry.started[:19].replace("T", " "), ""),
            ("" if entry.seconds is None else f"{entry.seconds:,.1f} s", "number"),
        ]
        for stage, entry in found.record.stages.items()
    ]
    errors = [
        f"<h3>{escape(stage)}: what went wrong</h3><pre>{escape(entry.error)}</pre>"
        for stage, entry in found.record.stages.items()
        if entry.error is not None
    ]
    return section("Stages", "".join([*errors, table(["Stage", "Status", "Started (UTC)", "Took"], rows)]))


def _files(found: Results) -> str:
    rows = [
        [(item.path, "path"), (item.kind, ""), (size(item.bytes), "number"), (Html(_digest(item.sha256)), "")]
        for entry in found.record.stages.values()
        for item in entry.artifacts
    ]
    return section("Files", table(["Path", "Kind", "Size", "SHA-256"], rows)) if rows else ""


def _settings(found: Results) -> str:
    text = (found.run_dir / artifacts.CONFIG).read_text(encoding="utf-8")
    return section("Config", f"<details><summary>config.yaml</summary><pre>{escape(text)}</pre></details>")


def _environment(found: Results) -> str:
    facts = dict(found.record.provenance)
    if not facts:
        return ""
    git = dict(facts.pop("git") or {})
    diff = git.pop("diff") if git else ""
    listing = json.dumps({**facts, "git": git}, indent=2, ensure_ascii=False)
    parts = [f"<details><summary>Machine, packages, code</summary><pre>{escape(listing)}</pre></details>"]
    if diff:
        parts.append(f"<details><summary>Uncommitted changes</summary><pre>{escape(diff)}</pre></details>")
    command = " ".join(found.record.invocations[-1].command)
    return section("Environment", f"<pre>{escape(command)}</pre>{''.join(parts)}")


def _tile(label: str, value: str, detail: str) -> str:
    return (
        f'<div class="tile"><div class="label">{escape(label)}</div><div class="value">{escape(value)}</div>'
        f'<div class="detail">{escape(detail)}</div></div>'
    )


def _badge(text: str, style: str) -> str:
    return f'<span class="badge {style}">{escape(text)}</span>'


def _digest(sha256: str) -> str:
    return f'<code title="{sha256}">{sha256[:12]}</code>'


def _arrow(values: Sequence[float | None]) -> str:
    return " → ".join("not finite" if value is None else f"{value:,.3g}" for value in values)


def _values(values: Mapping[str, Any]) -> str:
    return "\n".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in values.items())


def _value(value: Any) -> str:
    text = number(value) if isinstance(value, int | float) else str(value)
    return text if len(text) <= _MAX_VALUE_CHARACTERS else f"{text[:12]}..."


def _points(metrics: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    return [(row["step"], row[key]) for row in metrics if key in row and math.isfinite(row[key])]
