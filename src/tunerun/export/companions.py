"""What is written beside exported models: the chat template in the forms of other engines, and serve.json."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunerun import artifacts
from tunerun.chat import go_template, lmdeploy
from tunerun.chat.conversations import random_conversations
from tunerun.chat.faults import ChatFault
from tunerun.chat.frame import PROOF_CONVERSATIONS, Frame, probe_frame
from tunerun.chat.template import TEMPLATE, ChatTemplate, Message
from tunerun.chat.tokenizer import Tokenizer
from tunerun.chat.tool_calls import tool_parser
from tunerun.export.special import SpecialTokens
from tunerun.formats.handoff import HANDOFF, Handoff, Rendering, write_handoff
from tunerun.formats.modelfile import MODELFILE, OLDER_MODELFILE, Modelfile, write_modelfile

LMDEPLOY = "lmdeploy_chat_template.json"
# The first release that renders the GGUF's own Jinja template, tools included.
OLLAMA_VERSION = "0.30.11"
# Proved on other conversations than those that the frame was proved on.
_SEED = 1

_LIMITS = {
    "keeps_spaces": "white space around texts stays, which the chat template takes off",
    "keeps_reasoning": "reasoning in earlier answers stays, which the chat template takes off or moves",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """GGUF files, and what is known of the model in them."""

    name: str
    files: Mapping[str, str]
    """Names of GGUF files by llama.cpp type; the first is the default. Empty when folders or the adapter alone were
    written."""
    template: ChatTemplate | None
    """As it stands in the files."""
    tokenizer: Tokenizer
    special: SpecialTokens
    context_tokens: int
    system: str | None
    """System prompt that servers give conversations without one."""


def write_companions(folder: Path, model: Exported) -> list[tuple[str, str]]:
    """Writes the files beside what was exported; those for Ollama only beside GGUF files.

    Args:
        folder: export/.
        model: What they are.

    Returns:
        Kind and name of each file.
    """
    made = []
    ollama = lmdeploy_ = Rendering(reason="the model has no chat template")
    if model.template is not None:
        (folder / TEMPLATE).write_text(model.template.text, encoding="utf-8")
        made.append(("chat_template", TEMPLATE))
        lmdeploy_ = _rendering(folder, model, LMDEPLOY, _write_lmdeploy)
    if model.files:
        made.append(("modelfile", MODELFILE))
        ollama = _write_modelfiles(folder, model, ollama)
    else:
        ollama = Rendering(reason="there is no GGUF file of the whole model")
    kinds = (("modelfile", ollama), ("lmdeploy", lmdeploy_))
    made += [(kind, found.file) for kind, found in kinds if found.file is not None]
    write_handoff(folder / HANDOFF, _handoff(model, ollama, lmdeploy_))
    return [*made, ("serve", HANDOFF)]


def _write_modelfiles(folder: Path, model: Exported, without: Rendering) -> Rendering:
    """Writes the Modelfile, and the one with a Go template; returns the latter, or `without` without a template."""
    # Without a template in the GGUF any release will do.
    modelfile = _modelfile(model, template=None, requires=OLLAMA_VERSION if model.template is not None else None)
    (folder / MODELFILE).write_text(write_modelfile(modelfile), encoding="utf-8")
    found = without
    if model.template is not None:
        found = _rendering(folder, model, OLDER_MODELFILE, _write_older_modelfile)
    if lost := modelfile.lost():
        limit = f"{MODELFILE} leaves out {', '.join(lost)}: Ollama's reader would change it"
        print(limit)
        found = replace(found, reason="; ".join(filter(None, (found.reason.rstrip("."), limit))))
    return found


def _handoff(model: Exported, ollama: Rendering, lmdeploy_: Rendering) -> Handoff:
    text = model.template.text if model.template is not None else None
    return Handoff(
        default=next(iter(model.files.values()), None),
        files=model.files,
        context=model.context_tokens,
        stops=model.special.stops,
        template=TEMPLATE if text is not None else None,
        template_sha256=hashlib.sha256(text.encode()).hexdigest() if text is not None else None,
        tool_parser=tool_parser(text) if text is not None else None,
        system=model.system,
        ollama=ollama,
        lmdeploy=lmdeploy_,
    )


def _modelfile(model: Exported, *, template: str | None, requires: str | None) -> Modelfile:
    stops = [("stop", stop) for stop in model.special.stops]
    return Modelfile(
        weights=next(iter(model.files.values())),
        parameters=(("num_ctx", str(model.context_tokens)), *stops),
        system=model.system,
        template=template,
        requires=requires,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chat:
    """A chat template, and its frame as engines need it."""

    template: ChatTemplate
    frame: Frame
    start: str
    """Token that engines write before the frame; empty when the frame has it."""


def _rendering(folder: Path, model: Exported, file: str, write: Callable[[Path, Exported, _Chat], None]) -> Rendering:
    """Writes a rendering when the template can be written so; gives the reason when not."""
    assert model.template is not None, "asked for templates only"
    try:
        chat = _chat(model, model.template)
        write(folder / file, model, chat)
    except ChatFault as fault:
        print(f"no {file}: {fault.detail}")
        return Rendering(reason=fault.detail)
    return Rendering(file=file, reason="; ".join(_limits(chat.frame)))


def _chat(model: Exported, template: ChatTemplate) -> _Chat:
    """Finds the frame of a template for engines that tokenise a prompt like any text."""
    frame = probe_frame(template)
    if model.special.adds_eos:
        detail = "the tokenizer ends every text with an end token, and engines would put it after the prompt."
        raise ChatFault("not-expressible", detail)
    start = model.tokenizer.named["bos_token"] if model.special.adds_bos else ""
    return _Chat(template=template, frame=frame.without_start(start), start=start)


def _write_older_modelfile(path: Path, model: Exported, chat: _Chat) -> None:
    source = go_template.from_frame(chat.frame)
    _prove(chat, lambda messages: go_template.render(source, messages), default_system=None)
    content = _modelfile(model, template=source, requires=None)
    if lost := content.lost():
        raise ChatFault("not-expressible", f"Ollama's reader would change {', '.join(lost)}.")
    comments = [
        f"For Ollama before {OLLAMA_VERSION}, and without tools. Later releases: {MODELFILE}.",
        *(f"Not as the chat template does: {limit}." for limit in _limits(chat.frame)),
    ]
    path.write_text(write_modelfile(content, comments), encoding="utf-8")


def _write_lmdeploy(path: Path, model: Exported, chat: _Chat) -> None:
    marks = model.tokenizer.added
    found = lmdeploy.from_frame(chat.frame, model.name, stops=model.special.stops, marks=marks, system=model.system)
    _prove(chat, found.render, default_system=model.system)
    artifacts.write_json(path, found.to_json())


def _limits(frame: Frame) -> list[str]:
    return [text for field, text in _LIMITS.items() if not getattr(frame, field)]


def _prove(chat: _Chat, render: Callable[[Sequence[Message]], str], default_system: str | None) -> None:
    """Compares a rendering with the chat template's on random conversations.

    Raises:
        ChatFault: They differ.
    """

    def render_own(messages: Sequence[Message]) -> str:
        if default_system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": default_system}, *messages]
        return chat.template.render(messages, generation_prompt=True)

    for messages in random_conversations(PROOF_CONVERSATIONS, _SEED):
        wanted, found = _unless_refused(render_own, messages), _unless_refused(render, messages)
        if wanted != (None if found is None else chat.start + found):
            raise ChatFault("not-expressible", f"it is rendered otherwise: {messages[-1]['content']!r}.")


def _unless_refused(render: Callable[[Sequence[Message]], str], messages: Sequence[Message]) -> str | None:
    try:
        return render(messages)
    except ChatFault:
        return None
