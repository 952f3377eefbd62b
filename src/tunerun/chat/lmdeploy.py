"""LMDeploy's chat templates: written from a frame, and rendered to prove them.

LMDeploy (lmdeploy/model.py, `BaseChatTemplate`, 0.18) puts fixed texts around each message, and a system prompt of its
own, `meta_instruction`, before conversations that bring none. It renders a folder's Jinja template by itself when no
such file is named; the file is for engines and versions that do not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tunerun.chat.faults import ChatFault
from tunerun.chat.frame import Frame
from tunerun.chat.template import Message


@dataclass(frozen=True, kw_only=True, slots=True)
class LmdeployTemplate:
    """Fields of LMDeploy's `ChatTemplateConfig` that are written; null would take LMDeploy's own default."""

    model_name: str
    """A name that LMDeploy has no template of its own for."""
    system: str
    """Before a system prompt."""
    meta_instruction: str
    """System prompt of conversations without one."""
    eosys: str
    """After a system prompt."""
    user: str
    """Before a question."""
    eoh: str
    """After a question."""
    assistant: str
    """Before an answer."""
    eoa: str
    """After an answer."""
    separator: str
    """After `eoa`, when another message follows."""
    stop_words: tuple[str, ...]
    capability: str = "chat"

    def to_json(self) -> dict[str, Any]:
        """Returns what LMDeploy's `--chat-template FILE` reads."""
        return {**asdict(self), "stop_words": list(self.stop_words)}

    def render(self, messages: Sequence[Message]) -> str:
        """Renders a conversation as LMDeploy's `messages2prompt` does."""
        before = {"system": self.system, "user": self.user, "assistant": self.assistant}
        after = {"system": self.eosys, "user": self.eoh, "assistant": self.eoa + self.separator}
        parts = [] if messages[0]["role"] == "system" else [self.system, self.meta_instruction, self.eosys]
        for message in messages:
            parts += (before[message["role"]], message["content"], after[message["role"]])
        if messages[-1]["role"] == "assistant":
            return "".join(parts).removesuffix(after["assistant"])
        return "".join([*parts, self.assistant])


def from_json(data: Mapping[str, Any]) -> LmdeployTemplate:
    """Reads what `to_json` wrote.

    Raises:
        TypeError: It is something else.
    """
    return replace(LmdeployTemplate(**data), stop_words=tuple(data["stop_words"]))


def from_frame(
    frame: Frame, name: str, *, stops: Sequence[str], marks: re.Pattern[str] | None, system: str | None = None
) -> LmdeployTemplate:
    """Writes a frame as LMDeploy's template.

    Args:
        frame: Of the chat template.
        name: For LMDeploy's log.
        stops: Texts that end an answer.
        marks: Matches added tokens, at which texts between turns are cut.
        system: Prompt that conversations without one are given.

    Raises:
        ChatFault: LMDeploy has no fields for what the template does.
    """
    found = frame.system
    if found is None or found.place != "first":
        what = "takes no system prompt" if found is None else "writes the system prompt into the last question"
        raise ChatFault("not-expressible", f"the chat template {what}, which LMDeploy's format cannot.")
    if frame.answer != frame.prompt:
        detail = "the generation prompt is not how earlier answers are opened, as it is in LMDeploy's format."
        raise ChatFault("not-expressible", detail)
    if found.empty != found.before + found.after:
        raise ChatFault("not-expressible", "LMDeploy's format cannot leave out an empty system prompt.")
    eoh, assistant = _cut(frame.answer, marks)
    eoa, rest = _through(frame.following, marks)
    separator, user = _cut(rest, marks, at_first=True)
    if not found.after.endswith(user):
        user = _common_end(found.after, rest)
        separator = rest.removesuffix(user)
    return LmdeployTemplate(
        model_name=name,
        system=found.before,
        meta_instruction=_default_system(frame) if system is None else system,
        eosys=found.after.removesuffix(user),
        user=user,
        eoh=eoh,
        assistant=assistant,
        eoa=eoa,
        separator=separator,
        stop_words=tuple(stops),
    )


def _default_system(frame: Frame) -> str:
    found = frame.system
    assert found is not None, "checked before"
    framed = frame.opening.startswith(found.before) and frame.opening.endswith(found.after)
    if not framed or len(frame.opening) < len(found.before) + len(found.after):
        detail = (
            "LMDeploy's format frames a system prompt in every conversation, and the chat template writes none in "
            "conversations without one. Set a default one by export.system."
        )
        raise ChatFault("not-expressible", detail)
    return frame.opening[len(found.before) : len(frame.opening) - len(found.after)]


def _cut(text: str, marks: re.Pattern[str] | None, *, at_first: bool = False) -> tuple[str, str]:
    """Cuts a text before its first added token, or before its second one: the first ends what came before."""
    places = [match.start() for match in marks.finditer(text)] if marks else []
    wanted = 0 if at_first else 1
    return (text[: places[wanted]], text[places[wanted] :]) if len(places) > wanted else (text, "")


def _through(text: str, marks: re.Pattern[str] | None) -> tuple[str, str]:
    match = marks.search(text) if marks else None
    return (text[: match.end()], text[match.end() :]) if match else ("", text)


def _common_end(left: str, right: str) -> str:
    length = 0
    while length < min(len(left), len(right)) and left[-length - 1] == right[-length - 1]:
        length += 1
    return left[len(left) - length :]
