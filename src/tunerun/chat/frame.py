"""What a chat template writes around the texts of a plain conversation, found by rendering sentinels.

Engines that know no Jinja need the template in another form: Ollama's Go template, LMDeploy's JSON. Both can be written
down from a frame. A frame is never guessed: it has to rebuild the template's own rendering of many random conversations
exactly, or the reason why it cannot is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tunerun.chat.conversations import random_conversations
from tunerun.chat.faults import ChatFault
from tunerun.chat.sentinels import SENTINEL, sentinel
from tunerun.chat.template import ChatTemplate, Message

PROOF_CONVERSATIONS = 60

_EXCHANGES = (1, 2, 3)
_SYSTEM = 9999


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemFrame:
    """Where a template writes the system prompt."""

    place: Literal["first", "last"]
    """Before the first question, or inside the last one (Mistral)."""
    before: str
    after: str
    """Up to the text of the question; the question's opening is part of `before` and `after` when it is the first."""
    empty: str
    """What stands there for an empty system prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """All that a template writes around the texts of a conversation of system, user and assistant."""

    opening: str
    """Before the first question when there is no system prompt; a default system prompt is part of it."""
    answer: str
    """Between a question and its answer."""
    following: str
    """Between an answer and the next question."""
    prompt: str
    """After the last question: the generation prompt."""
    system: SystemFrame | None
    """None when the template refuses system prompts."""
    keeps_spaces: bool
    """Whether white space around texts is written as it is."""
    keeps_reasoning: bool
    """Whether the reasoning of earlier answers is written as it is."""

    def render(self, messages: Sequence[Message]) -> str:
        """Renders a conversation: an optional system prompt, then questions and answers in turn, a question last."""
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        turns = [message["content"] for message in messages if message["role"] != "system"]
        parts = [self._opening(system)]
        for index, text in enumerate(turns):
            last = index == len(turns) - 1
            if last and self.system is not None and self.system.place == "last":
                parts.append(_insert(self.system, system))
            parts.append(text)
            parts.append(self.prompt if last else self.following if index % 2 else self.answer)
        return "".join(parts)

    def without_start(self, token: str) -> Frame:
        """Returns the frame for engines that write the beginning-of-sequence token themselves.

        Args:
            token: Empty when they write none.

        Raises:
            ChatFault: The template does not begin with it.
        """
        starts = [self.opening]
        if self.system is not None and self.system.place == "first":
            starts += [self.system.before, self.system.empty]
        if not all(start.startswith(token) for start in starts):
            detail = f"the engine begins every prompt with {token!r}, and the chat template does not."
            raise ChatFault("not-expressible", detail)
        system = self.system
        if system is not None and system.place == "first":
            system = replace(system, before=system.before[len(token) :], empty=system.empty[len(token) :])
        return replace(self, opening=self.opening[len(token) :], system=system)

    def _opening(self, system: str | None) -> str:
        if system is None or self.system is None or self.system.place == "last":
            return self.opening
        return _insert(self.system, system)


def probe_frame(template: ChatTemplate) -> Frame:
    """Finds the frame of a template and proves it.

    Args:
        template: Rendered without tools.

    Raises:
        ChatFault: The template is not a frame; says why.
    """
    opening, answer, following, prompt = _turns(template, None)
    frame = Frame(
        opening=opening,
        answer=answer,
        following=following,
        prompt=prompt,
        system=None,
        keeps_spaces=True,
        keeps_reasoning=True,
    )
    frame = replace(frame, system=_probe_system(template, frame))
    prove(template, frame)
    return replace(
        frame,
        keeps_spaces=_keeps(template, frame, "  a\n", "\n b "),
        keeps_reasoning=_keeps(template, frame, "a", "<think>\nb\n</think>\n\nc"),
    )


def prove(template: ChatTemplate, frame: Frame) -> None:
    """Rebuilds the template's rendering of random conversations.

    Raises:
        ChatFault: One differs.
    """
    for messages in random_conversations(PROOF_CONVERSATIONS):
        if frame.system is None and messages[0]["role"] == "system":
            continue
        if frame.render(messages) != template.render(messages, generation_prompt=True):
            texts = [message["content"] for message in messages]
            raise ChatFault("not-expressible", f"the chat template does not write these texts as others: {texts}.")


def _insert(frame: SystemFrame, system: str | None) -> str:
    if system is None:
        return ""
    return f"{frame.before}{system}{frame.after}" if system else frame.empty


def _probe_system(template: ChatTemplate, frame: Frame) -> SystemFrame | None:
    try:
        split = [_split(template, sentinel(_SYSTEM), exchanges) for exchanges in _EXCHANGES]
    except ChatFault as fault:
        if fault.reason == "template-refuses":
            return None
        raise
    orders = [order for order, _ in split]
    if all(order[0] == _SYSTEM for order in orders):
        before = _same({fixed[0] for _, fixed in split}, "before the system prompt")
        after = _same({fixed[1] for _, fixed in split}, "after the system prompt")
        _expect_turns(frame, [fixed[2:] for _, fixed in split])
        empty, *turns = _turns(template, "")
        _expect_turns(frame, [turns])
        return SystemFrame(place="first", before=before, after=after, empty=empty)
    if all(order[-2] == _SYSTEM for order in orders[1:]):
        openings = [frame.opening, *[frame.following] * (len(_EXCHANGES) - 1)]
        found = [fixed[-3] for _, fixed in split]
        if not all(text.startswith(opening) for text, opening in zip(found, openings, strict=True)):
            raise ChatFault("not-expressible", "the chat template opens the turn with the system prompt otherwise.")
        inserted = {text.removeprefix(opening) for text, opening in zip(found, openings, strict=True)}
        before = _same(inserted, "before the system prompt")
        after = _same({fixed[-2] for _, fixed in split}, "after the system prompt")
        empty = _empty_in_last(template, frame)
        return SystemFrame(place="last", before=before, after=after, empty=empty)
    raise ChatFault("not-expressible", "the chat template moves the system prompt as the conversation grows.")


def _empty_in_last(template: ChatTemplate, frame: Frame) -> str:
    found = set()
    for exchanges in _EXCHANGES:
        _, fixed = _split(template, "", exchanges)
        opening = frame.opening if exchanges == 1 else frame.following
        found.add(fixed[-2].removeprefix(opening))
    return _same(found, "for an empty system prompt")


def _turns(template: ChatTemplate, system: str | None) -> tuple[str, str, str, str]:
    """Returns what stands before the first question, before and after answers, and after the last question."""
    split = [_split(template, system, exchanges)[1] for exchanges in _EXCHANGES]
    opening = _same({fixed[0] for fixed in split}, "before the first question")
    prompt = _same({fixed[-1] for fixed in split}, "after the last question")
    between = [text for fixed in split for text in fixed[1:-1]]
    answer = _same(set(between[::2]), "before answers")
    return opening, answer, _same(set(between[1::2]), "after answers"), prompt


def _expect_turns(frame: Frame, found: Sequence[Sequence[str]]) -> None:
    known = {frame.answer, frame.following, frame.prompt}
    if not all(set(fixed) <= known for fixed in found):
        detail = "the chat template writes turns otherwise when there is a system prompt."
        raise ChatFault("not-expressible", detail)


def _split(template: ChatTemplate, system: str | None, exchanges: int) -> tuple[list[int], list[str]]:
    """Renders sentinels; returns their numbers in order of place, and the texts around them."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    roles = ["user", *("assistant", "user") * (exchanges - 1)]
    messages += [{"role": role, "content": sentinel(number)} for number, role in enumerate(roles)]
    parts = SENTINEL.split(template.render(messages, generation_prompt=True))
    order = [int(number) for number in parts[1::2]]
    wanted = list(range(len(roles))) + ([_SYSTEM] if system else [])
    if sorted(order) != wanted:
        raise ChatFault("not-expressible", "the chat template leaves out or repeats a text of the conversation.")
    if [number for number in order if number != _SYSTEM] != list(range(len(roles))):
        raise ChatFault("not-expressible", "the chat template writes turns in another order.")
    return order, parts[::2]


def _same(texts: set[str], where: str) -> str:
    if len(texts) != 1:
        raise ChatFault("not-expressible", f"the chat template does not always write the same {where}.")
    return next(iter(texts))


def _keeps(template: ChatTemplate, frame: Frame, question: str, answer: str) -> bool:
    texts = (question, answer, question)
    messages = [
        {"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), texts, strict=True)
    ]
    return frame.render(messages) == template.render(messages, generation_prompt=True)
