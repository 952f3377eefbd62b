"""The answer stage: writes answer/answers.jsonl of a run, a teacher's answers as rows to train on, and a report."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunerun import artifacts
from tunerun.artifacts import Artifact
from tunerun.config.schema import AnswerConfig
from tunerun.data.answer import report
from tunerun.data.answer.ask import Answered, Item, Outcome, Teacher, ask_all
from tunerun.data.answer.endpoint import connect
from tunerun.data.answer.journal import open_journal
from tunerun.data.answer.prompts import Prompts, read_prompts
from tunerun.errors import Preempted, UserError
from tunerun.plan.steps import AnswerStep
from tunerun.progress import Progress

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_TOLD_EVERY_SECONDS = 30.0


def run(step: AnswerStep, out: Path) -> list[Artifact]:
    """Lets the teacher answer the prompts of a run, going on where an earlier execution was stopped.

    Args:
        step: What to ask whom.
        out: Run directory.

    Raises:
        UserError: The prompts, the endpoint or the settings are wrong, or too many rows are lost.
        StageError: The endpoint has stopped answering.
        Preempted: A signal came; the answers so far are kept.
    """
    prompts = read_prompts(step)
    items = [Item(asked, sample) for asked in prompts.asked for sample in range(step.answer.samples)]
    other = None if step.journal is None else Path(step.journal)
    with open_journal(out / artifacts.ANSWER_JOURNAL, other) as journal:
        if journal.damaged:
            print(f"answer: {journal.damaged:,} lines of {artifacts.ANSWER_JOURNAL} are damaged and are asked again")
        teacher = Teacher(step.answer, step.seed, journal)
        found = {item.key: teacher.recall(item) for item in items}
        missing = [item for item in {item.key: item for item in items}.values() if found[item.key] is None]
        if len(missing) < len(found):
            print(f"answer: {len(found) - len(missing):,} of {len(found):,} rows were answered before")
        if missing:
            found |= asyncio.run(_ask(missing, teacher, step.answer))
    return _publish(step, out, prompts, items, [_known(found[item.key]) for item in items])


def read_key(answer: AnswerConfig) -> str | None:
    """Returns the endpoint's key, or None for one that asks for none."""
    # What the variable holds was checked before the run started.
    return None if answer.api_key_env is None else os.environ[answer.api_key_env]


async def _ask(missing: Sequence[Item], teacher: Teacher, answer: AnswerConfig) -> dict[str, Outcome]:
    with _stopping() as received, Progress("answer", total=len(missing), unit="rows") as progress:
        try:
            async with connect(answer, read_key(answer), _teller(progress)) as endpoint:
                await endpoint.check()
                return await ask_all(missing, teacher, endpoint, progress)
        except asyncio.CancelledError as error:
            if not received:
                raise
            left = len(missing) - progress.count
            raise Preempted(f"stopped by {received[0].name}; {left:,} rows are still to be answered") from error


@contextmanager
def _stopping() -> Iterator[list[signal.Signals]]:
    """Cancels the current task when a signal comes; requests on their way are given up."""
    received: list[signal.Signals] = []
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def stop(number: signal.Signals) -> None:
        received.append(number)
        task.cancel()

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        yield received
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


def _teller(progress: Progress) -> Callable[[str], None]:
    """Returns what shows why requests wait: beside the bar always, as a line now and then."""
    told = float("-inf")

    def tell(reason: str) -> None:
        nonlocal told
        progress.advance(0, note=reason)
        if time.monotonic() - told >= _TOLD_EVERY_SECONDS:
            told = time.monotonic()
            print(f"answer: {reason}")

    return tell


def _known(outcome: Outcome | None) -> Outcome:
    assert outcome is not None, "every row was answered or lost"
    return outcome


def _publish(
    step: AnswerStep, out: Path, prompts: Prompts, items: Sequence[Item], outcomes: Sequence[Outcome]
) -> list[Artifact]:
    found = report.build(prompts, items, outcomes)
    problems = report.problems(found, step.answer.max_dropped_fraction)
    if problems:
        raise UserError(problems)
    with artifacts.publish(out / artifacts.ANSWERS) as staging, staging.open("w", encoding="utf-8") as file:
        for item, outcome in zip(items, outcomes, strict=True):
            if isinstance(outcome, Answered):
                file.write(json.dumps(_row(item, outcome), ensure_ascii=False) + "\n")
    artifacts.write_json(out / artifacts.ANSWER_REPORT, found)
    print(report.render(found))
    return [
        artifacts.describe(out, "answers", artifacts.ANSWERS),
        artifacts.describe(out, "report", artifacts.ANSWER_REPORT),
    ]


def _row(item: Item, made: Answered) -> dict[str, Any]:
    """Returns a row in OpenAI's form, with where it comes from; answers that the prompt brought are not learned."""
    messages = [_message(message, index in item.asked.prompt.asked) for index, message in enumerate(made.messages)]
    last = made.replies[-1]
    source = {
        "model": last.model,
        "finish_reason": last.finish_reason,
        "prompt_tokens": sum(reply.usage.get("prompt_tokens", 0) for reply in made.replies),
        "completion_tokens": sum(reply.usage.get("completion_tokens", 0) for reply in made.replies),
        "prompt": item.where,
        "sample": item.sample,
    }
    return {"messages": messages, "teacher": source}


def _message(message: Mapping[str, Any], asked: bool) -> dict[str, Any]:
    return {**message, "weight": 0} if message["role"] == "assistant" and not asked else dict(message)
