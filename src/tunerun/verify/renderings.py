"""Gates `template_tokens`, for the chat template in other engines' forms, and `modelfile`, for the rest of Ollama's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunerun.chat import go_template, lmdeploy
from tunerun.chat.conversations import random_conversations
from tunerun.chat.faults import ChatFault
from tunerun.chat.template import ChatTemplate, Message
from tunerun.chat.tokenizer import Tokenizer
from tunerun.errors import MissingExtra
from tunerun.formats.handoff import HANDOFF, Handoff, read_handoff
from tunerun.formats.modelfile import MODELFILE, Modelfile, read_modelfile
from tunerun.verify import gguf_model
from tunerun.verify.gates import Gate, text_gate
from tunerun.verify.tokens import NAME

_CONVERSATIONS = 60
# Others than those that the files were written by.
_SEED = 2
_ADVICE = "Export again."

_Render = Callable[[Sequence[Message]], str]
_Encode = Callable[[str], list[int]]


def rendering_gates(export: Path, tokenizer: Tokenizer, template: ChatTemplate) -> Iterator[Gate]:
    """Compares each form of the chat template beside what was exported with the one of training, token by token.

    Args:
        export: export/.
        tokenizer: Of training.
        template: Of training.
    """
    if not (export / HANDOFF).is_file():
        return
    handoff = read_handoff(export / HANDOFF)
    told = _Told(tokenizer, template, handoff.system)
    if handoff.default is not None:
        yield modelfile_gate(export / MODELFILE, handoff)
    if handoff.ollama.file is not None:
        yield modelfile_gate(export / handoff.ollama.file, handoff)
        yield _gate(handoff.ollama.file, told, lambda file: _ollama(export / file, export))
    if handoff.lmdeploy.file is not None:
        yield _gate(handoff.lmdeploy.file, told, lambda file: _lmdeploy(export / file, tokenizer))


def modelfile_gate(path: Path, handoff: Handoff) -> Gate:
    """Compares what a Modelfile says besides its template with what the export was told.

    Args:
        path: The Modelfile.
        handoff: Of the export.
    """
    name = f"modelfile:{path.name}"
    try:
        content = read_modelfile(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = f"it cannot be read: {error}. {_ADVICE}"
        return Gate(name=name, measured={}, bound={}, verdict="fail", reason=reason)
    assert handoff.default is not None, "written beside GGUF files"
    stops = tuple(("stop", stop) for stop in handoff.stops)
    wanted = Modelfile(weights=handoff.default, parameters=stops, system=handoff.system)
    lost = wanted.lost()
    kept = tuple(stop for stop in handoff.stops if not Modelfile(weights="", parameters=(("stop", stop),)).lost())
    pairs = [
        ("FROM", content.weights, wanted.weights),
        ("SYSTEM", content.system, None if "SYSTEM" in lost else wanted.system),
        ("PARAMETER stop", content.stops, kept),
    ]
    measured = {"stops": len(content.stops), "system": content.system is not None}
    for key, found, meant in pairs:
        if found != meant:
            reason = f"{key} is {found!r} where serve.json has {meant!r}. {_ADVICE}"
            return Gate(name=name, measured=measured, bound={}, verdict="fail", reason=reason)
    if lost:
        reason = f"Ollama's reader would change {', '.join(lost)}, so that the file has none"
        return Gate(name=name, measured=measured, bound={}, verdict="not_proved", reason=reason)
    return Gate(name=name, measured=measured, bound={}, verdict="pass", reason="")


@dataclass(frozen=True, slots=True)
class _Told:
    """What training rendered by, and the system prompt that servers are told to give."""

    tokenizer: Tokenizer
    template: ChatTemplate
    system: str | None


def _gate(file: str, told: _Told, read: Callable[[str], tuple[_Render, _Encode]]) -> Gate:
    name, bound = f"{NAME}:{file}", {"different_texts": 0}
    try:
        render, encode = read(file)
    except MissingExtra as error:
        return Gate(name=name, measured={}, bound=bound, verdict="not_proved", reason=str(error))
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"it cannot be read: {error}. {_ADVICE}"
        return Gate(name=name, measured={}, bound=bound, verdict="fail", reason=reason)
    faults, compared = [], 0
    for messages in random_conversations(_CONVERSATIONS, _SEED):
        asked: list[dict[str, Any]] = messages
        if told.system is not None and messages[0]["role"] != "system":
            asked = [{"role": "system", "content": told.system}, *messages]
        wanted = _ids(
            lambda texts: told.template.render(texts, generation_prompt=True), asked, _tokenizer_ids(told.tokenizer)
        )
        found = _ids(render, messages, encode)
        compared += wanted is not None
        if wanted != found:
            faults.append(f"{messages[-1]['content']!r} is asked in other tokens than in training.")
    return text_gate(name, compared, faults, _ADVICE)


def _tokenizer_ids(tokenizer: Tokenizer) -> _Encode:
    """Returns how training turns a rendering into tokens."""
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


def _ids(render: _Render, messages: Sequence[Message], encode: _Encode) -> list[int] | None:
    try:
        return encode(render(messages))
    except ChatFault:
        return None


def _ollama(path: Path, export: Path) -> tuple[_Render, _Encode]:
    content = read_modelfile(path.read_text(encoding="utf-8"))
    if content.template is None:
        raise ValueError("it has no TEMPLATE")
    source, system = content.template, content.system
    model = gguf_model.open_gguf(export / content.weights, vocabulary_only=True)

    def render(messages: Sequence[Message]) -> str:
        # Ollama puts SYSTEM before conversations without one (server/routes.go).
        if system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system}, *messages]
        return go_template.render(source, messages)

    return render, lambda text: gguf_model.tokenize(model, text, framed=True)


def _lmdeploy(path: Path, tokenizer: Tokenizer) -> tuple[_Render, _Encode]:
    fields = lmdeploy.from_json(json.loads(path.read_text(encoding="utf-8")))
    start = tokenizer.token_id("bos_token")

    def encode(text: str) -> list[int]:
        ids = tokenizer.encode(text, add_special_tokens=True)
        # LMDeploy (tokenizer.py) writes one where there would be two.
        return ids[1:] if start is not None and ids[:2] == [start, start] else ids

    return fields.render, encode
