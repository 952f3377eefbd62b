"""Counts what a teacher made of the prompts: answer/report.json, and the lines that the stage prints.

Nothing in it depends on when or in how many goes the answers were collected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tunerun import artifacts
from tunerun.data.answer.ask import Answered, Item, Lost, Outcome
from tunerun.data.answer.prompts import Prompts
from tunerun.errors import Problem

_MAX_EXAMPLES = 5
_SHOWN_CHARACTERS = 120

# How models begin an answer that they decline to give; a guess, so such rows are counted and kept.
_REFUSALS = (
    "i'm sorry, but", "i am sorry, but", "sorry, but i", "i can't ", "i cannot ", "i'm unable to", "i am unable to",
    "i won't ", "as an ai ", "as a language model", "抱歉", "很抱歉", "对不起", "我无法", "我不能", "作为一个人工智能",
)  # fmt: skip

_FIXES = {
    "cut-off": "Raise answer.max_new_tokens, or set answer.on_truncated=keep.",
    "empty": "See whether the teacher puts its answer elsewhere (answer.extra), or needs more tokens.",
    "refused": "Change the prompts, or set answer.system.",
    "rejected": "Shorten the prompts, or see what the endpoint says.",
    "no-answer": "Run it again: only what is missing is asked.",
    "no-text": "Set answer.system so that it answers in words.",
}


def build(prompts: Prompts, items: Sequence[Item], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Returns the report.

    Args:
        prompts: What was read.
        items: Every row to make.
        outcomes: What became of each.
    """
    made = [outcome for outcome in outcomes if isinstance(outcome, Answered)]
    replies = [reply for outcome in made for reply in outcome.replies]
    lost = [(item, outcome) for item, outcome in zip(items, outcomes, strict=True) if isinstance(outcome, Lost)]
    doubtful = [
        (item, outcome)
        for item, outcome in zip(items, outcomes, strict=True)
        if isinstance(outcome, Answered) and _declines(outcome)
    ]
    return {
        "schema": artifacts.REPORT_SCHEMA,
        "prompts_read": prompts.rows_read,
        "prompts": len(prompts.asked),
        "bad_prompts": prompts.dropped,
        "rows": len(made),
        "dropped": _counted(outcome.reason for _, outcome in lost),
        "cut_off_kept": sum(reply.verdict == "cut-off" for reply in replies),
        "look_like_refusals": len(doubtful),
        "models": _counted(reply.model or "(not said)" for reply in replies),
        "prompt_tokens": sum(reply.usage.get("prompt_tokens", 0) for reply in replies),
        "completion_tokens": sum(reply.usage.get("completion_tokens", 0) for reply in replies),
        "examples": [
            *_examples((item, outcome.reason, outcome.detail) for item, outcome in lost),
            *_examples((item, "looks-like-refusal", _last_answer(outcome)) for item, outcome in doubtful),
        ],
    }


def problems(report: dict[str, Any], max_dropped_fraction: float) -> list[Problem]:
    """Finds reasons not to train on the answers.

    Args:
        report: From `build`.
        max_dropped_fraction: Share of rows that may be lost.
    """
    lost = sum(report["dropped"].values())
    wanted = report["rows"] + lost
    if report["rows"] and lost <= max_dropped_fraction * wanted:
        return []
    found = []
    for reason, count in report["dropped"].items():
        example = next(item for item in report["examples"] if item["reason"] == reason)
        what = f"{count:,} of {wanted:,} rows are lost ({reason}): {example['detail']}"
        found.append(Problem(where=example["where"], what=what, fix=_FIXES[reason]))
    what = f"{lost:,} of {wanted:,} rows are lost, and {max_dropped_fraction:.0%} may be. The answers are kept."
    return [*found, Problem(where="answer.max_dropped_fraction", what=what, fix="Mend the cause, or raise it.")]


def render(report: dict[str, Any]) -> str:
    """Lays the report out for a terminal."""
    lines = [f"{report['rows']:,} rows from {report['prompts']:,} prompts, answered by {', '.join(report['models'])}"]
    if report["completion_tokens"]:
        lines.append(f"tokens: {report['prompt_tokens']:,} asked, {report['completion_tokens']:,} answered")
    if report["bad_prompts"]:
        lines.append(f"prompts left out: {_listed(report['bad_prompts'])}")
    if report["dropped"]:
        lines.append(f"rows lost: {_listed(report['dropped'])}")
    if report["cut_off_kept"]:
        lines.append(f"answers kept though cut off: {report['cut_off_kept']:,}")
    if report["look_like_refusals"]:
        lines.append(f"answers that begin like a refusal, kept: {report['look_like_refusals']:,}")
    return "\n".join(lines)


def _declines(made: Answered) -> bool:
    starts = (reply.text.lstrip().lower().replace("’", "'") for reply in made.replies)
    return any(start.startswith(_REFUSALS) for start in starts)


def _last_answer(made: Answered) -> str:
    text = " ".join(made.replies[-1].text.split())
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _examples(found: Iterable[tuple[Item, str, str]]) -> list[dict[str, str]]:
    shown: Counter[str] = Counter()
    examples = []
    for item, reason, detail in found:
        shown[reason] += 1
        if shown[reason] <= _MAX_EXAMPLES:
            examples.append({"where": item.where, "reason": reason, "detail": detail})
    return examples


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
