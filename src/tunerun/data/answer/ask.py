"""Asks a teacher all prompts, some at a time; what a journal knows is not asked again."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunerun.config.schema import AnswerConfig
from tunerun.data.answer.endpoint import Endpoint, NoAnswer, Rejected
from tunerun.data.answer.journal import Journal
from tunerun.data.answer.prompts import Asked
from tunerun.data.answer.reply import Reply
from tunerun.errors import Problem, UserError
from tunerun.paths import looks_local
from tunerun.progress import Progress

# So many prompts that the endpoint refuses, and none that it takes, and the request itself is wrong.
_MAX_FIRST_REJECTED = 3

Messages = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Item:
    """A row to make."""

    asked: Asked
    sample: int
    """Which of the prompt's answers it is."""

    @property
    def key(self) -> str:
        """The same for copies of a prompt, which are asked once."""
        prompt = self.asked.prompt
        return hash_of([prompt.messages, sorted(prompt.asked), self.sample])

    @property
    def where(self) -> str:
        """File and line of the prompt; of a local file the name alone, which is the same on every machine."""
        file = self.asked.file
        return f"{Path(file).name if looks_local(file) else file}:{self.asked.line}"


@dataclass(frozen=True, slots=True)
class Lost:
    """Why a row could not be made."""

    reason: str
    """Stable short name; the report counts by it."""
    detail: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A row that was made."""

    messages: Messages
    replies: tuple[Reply, ...]
    """One for each answer that was asked for."""


Outcome = Answered | Lost


class Teacher:
    """Makes rows by asking; knows what was answered before."""

    def __init__(self, answer: AnswerConfig, seed: int, journal: Journal) -> None:
        """Takes settings, the run's seed, and where replies are kept."""
        self._answer, self._seed, self._journal = answer, seed, journal
        self.concurrent = answer.concurrent
        """Rows that are made at a time."""
        self._rejected = 0

    def recall(self, item: Item) -> Outcome | None:
        """Makes a row of what the journal knows; None when something has to be asked."""
        messages, replies = list(item.asked.prompt.messages), []
        for index in sorted(item.asked.prompt.asked):
            found = self._journal.find(hash_of(self._request(messages[:index], item.sample)))
            if found is None:
                return None
            if (lost := self._lost(found)) is not None:
                return lost
            messages[index] = self._message(found)
            replies.append(found)
        return Answered(tuple(messages), tuple(replies))

    async def answer(self, item: Item, endpoint: Endpoint) -> Outcome:
        """Makes a row, asking for what the journal does not know.

        Raises:
            UserError: The endpoint answers no prompt.
            StageError: The endpoint has stopped answering.
        """
        messages = list(item.asked.prompt.messages)
        # The later answers of a conversation build on the earlier ones.
        for index in sorted(item.asked.prompt.asked):
            request = self._request(messages[:index], item.sample)
            key = hash_of(request)
            found = self._journal.find(key)
            if found is None:
                try:
                    found = await endpoint.ask(request)
                except Rejected as error:
                    self._count_rejected(error)
                    return Lost("rejected", f"the endpoint does not take the prompt: {error}.")
                except NoAnswer as error:
                    return Lost("no-answer", f"{error}.")
                self._journal.add(key, found)
            if self._lost(found) is not None:
                break
            messages[index] = self._message(found)
        outcome = self.recall(item)
        assert outcome is not None, "every reply is in the journal now"
        return outcome

    def _request(self, messages: Sequence[Mapping[str, Any]], sample: int) -> dict[str, Any]:
        """Returns the body of a request; its seed depends on what is asked, and not on where the prompt stands."""
        answer = self._answer
        digest = hash_of([self._seed, sample, messages])
        fields = {
            "model": answer.model,
            "messages": messages,
            "temperature": answer.temperature,
            "top_p": answer.top_p,
            "max_tokens": answer.max_new_tokens,
            # 31 bits, which every server takes.
            "seed": int(digest[:8], 16) >> 1,
            **answer.extra,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def _message(self, found: Reply) -> Mapping[str, Any]:
        thoughts = found.reasoning if self._answer.keep_reasoning else None
        return {"role": "assistant", "content": found.text} | (
            {} if thoughts is None else {"reasoning_content": thoughts}
        )

    def _lost(self, found: Reply) -> Lost | None:
        verdict = found.verdict
        if verdict == "good" or (verdict == "cut-off" and found.text.strip() and self._answer.on_truncated == "keep"):
            return None
        return Lost(verdict, _DETAILS[verdict].format(found=found))

    def _count_rejected(self, error: Rejected) -> None:
        self._rejected += 1
        if self._rejected >= _MAX_FIRST_REJECTED and not len(self._journal):
            fix = "See what it says; answer.extra adds fields to a request, and leaves out those that are null."
            what = f"the endpoint takes no prompt: {error}."
            raise UserError(Problem(where="answer", what=what, fix=fix))


_DETAILS = {
    "cut-off": "the answer was cut off at the longest length.",
    "empty": "the answer is empty.",
    "refused": "the teacher refused ({found.finish_reason}): {found.refusal}.",
    "no-text": "the answer calls a tool.",
}


def hash_of(value: Any) -> str:
    """Returns the hash of plain data; a journal knows a request by it."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


async def ask_all(
    items: Sequence[Item], teacher: Teacher, endpoint: Endpoint, progress: Progress
) -> dict[str, Outcome]:
    """Makes rows, `answer.concurrent` at a time.

    Args:
        items: Rows to make, each one once.
        teacher: Makes one.
        endpoint: That is asked.
        progress: Told of each row.

    Returns:
        What became of each, by its key.

    Raises:
        UserError: The endpoint answers no prompt.
        StageError: The endpoint has stopped answering.
    """
    outcomes: dict[str, Outcome] = {}
    left = iter(items)
    count = min(teacher.concurrent, len(items))
    tasks = [asyncio.create_task(_work(left, teacher, endpoint, progress, outcomes)) for _ in range(count)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return outcomes


async def _work(
    left: Iterator[Item], teacher: Teacher, endpoint: Endpoint, progress: Progress, outcomes: dict[str, Outcome]
) -> None:
    for item in left:
        outcomes[item.key] = await teacher.answer(item, endpoint)
        progress.advance()
