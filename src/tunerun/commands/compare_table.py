"""The answers of several models to the same questions as a table: Markdown, HTML or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from tunerun import columns, markdown, text_metrics
from tunerun.data.questions import Question
from tunerun.run import page
from tunerun.serve.compare import Answer

SETTINGS = ("system", "max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop", "bits")
"""Options that decide the answers, as the table tells them."""
_SCHEMA = 1
_SCORES = {"bleu4": "BLEU-4", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}


@dataclass(frozen=True, slots=True)
class TableRow:
    """A question with its answers."""

    question: str
    """The last message; those before it are context."""
    context: tuple[Mapping[str, Any], ...]
    reference: str | None
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """What was asked and answered."""

    models: tuple[str, ...]
    rows: tuple[TableRow, ...]
    scores: Mapping[str, Mapping[str, float]]
    """Of each model against the references; empty without references."""
    settings: Mapping[str, Any]


def build(
    models: Sequence[str],
    questions: Sequence[Question],
    answers: Sequence[Sequence[Answer]],
    settings: Mapping[str, Any],
) -> Table:
    """Brings answers together with their questions, and measures them.

    Args:
        models: Names.
        questions: What was asked.
        answers: Of each model, in the order of the questions.
        settings: Options that decided the answers.
    """
    rows = tuple(
        TableRow(question.messages[-1]["content"], question.messages[:-1], question.reference, said)
        for question, said in zip(questions, zip(*answers, strict=True), strict=True)
    )
    judged = [index for index, row in enumerate(rows) if row.reference is not None]
    references = [row.reference for row in rows if row.reference is not None]
    scores = {
        name: text_metrics.measure([said[index].text for index in judged], references)
        for name, said in zip(models, answers, strict=True)
        if judged
    }
    return Table(tuple(models), rows, scores, settings)


def scores_text(table: Table) -> str:
    """Lays the scores out for a terminal."""
    wide = max(columns.width(name) for name in table.models)
    head = columns.pad("", wide) + "".join(f"{label:>10}" for label in _SCORES.values())
    lines = [
        columns.pad(name, wide) + "".join(f"{scores[key]:>10.1f}" for key in _SCORES)
        for name, scores in table.scores.items()
    ]
    return "\n".join([head, *lines])


def to_json(table: Table) -> str:
    """Writes a table as JSON."""
    rows = [
        {
            "question": row.question,
            "context": list(row.context),
            "reference": row.reference,
            "answers": {
                name: {"text": answer.text, "fault": answer.fault or None}
                for name, answer in zip(table.models, row.answers, strict=True)
            },
        }
        for row in table.rows
    ]
    body = {"schema": _SCHEMA, "models": table.models, "settings": table.settings, "scores": table.scores, "rows": rows}
    return json.dumps(body, ensure_ascii=False, indent=2) + "\n"


def to_markdown(table: Table) -> str:
    """Writes a table as Markdown."""
    parts = []
    if table.scores:
        parts.append(markdown.table(["", *_SCORES.values()], [
            [name, *(f"{scores[key]:.1f}" for key in _SCORES)] for name, scores in table.scores.items()
        ]))  # fmt: skip
    parts.append(markdown.table(_heads(table), _cells(table)))
    return "\n\n".join([*parts, f"{_settings(table)}\n"])


def to_html(table: Table) -> str:
    """Writes a table as a page of its own."""
    title = " / ".join(table.models)
    parts = [f"<header><h1>{escape(title)}</h1><p>{escape(_settings(table))}</p></header>"]
    if table.scores:
        scores = [
            [(name, ""), *((f"{found[key]:.1f}", "number") for key in _SCORES)] for name, found in table.scores.items()
        ]
        parts.append(page.section("Scores", page.table(["", *_SCORES.values()], scores)))
    answers = [[(cell, "answer") for cell in cells] for cells in _cells(table)]
    parts.append(page.section("Answers", page.table(_heads(table), answers)))
    return page.render(title, parts)


RENDERERS: Mapping[str, Callable[[Table], str]] = {".md": to_markdown, ".html": to_html, ".json": to_json}
"""What writes a table, by the ending of its file."""


def _heads(table: Table) -> list[str]:
    return ["Question", *(["Reference"] if table.scores else []), *table.models]


def _cells(table: Table) -> list[list[str]]:
    return [
        [
            "\n".join([*(f"{item['role']}: {item['content']}" for item in row.context), row.question]),
            *([row.reference or ""] if table.scores else []),
            *(answer.shown for answer in row.answers),
        ]
        for row in table.rows
    ]


def _settings(table: Table) -> str:
    given = {name: value for name, value in table.settings.items() if value not in (None, [])}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in given.items())
