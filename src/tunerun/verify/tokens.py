"""Gate `template_tokens`: what was trained on and what is served are the same token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tunerun.chat.template import ChatTemplate, load_template
from tunerun.chat.tokenizer import Tokenizer, load_tokenizer
from tunerun.errors import MissingExtra
from tunerun.verify import gguf_model, probes
from tunerun.verify.gates import Gate, text_gate

NAME = "template_tokens"
ADVICE = "Export again from the folder that was trained; do not exchange its tokenizer or template."


def folder_gate(
    tokenizer: Tokenizer, template: ChatTemplate | None, folder: Path, prompts: Sequence[str], name: str
) -> Gate:
    """Compares a model folder with the tokenizer and template of training.

    Args:
        tokenizer: Of training.
        template: Of training; None for plain text.
        folder: A complete model folder.
        prompts: The user's questions.
        name: What the folder is, for the report.
    """
    there = load_tokenizer(folder)
    other = None if template is None else load_template(folder, there.named)
    return _gate(
        f"{NAME}:{name}",
        tokenizer,
        template,
        other,
        lambda text: there.encode(text, add_special_tokens=False),
        prompts,
    )


def gguf_gate(
    tokenizer: Tokenizer, template: ChatTemplate | None, path: Path, prompts: Sequence[str], rows: Sequence[list[int]]
) -> Gate:
    """Compares a GGUF's tokenizer and template, run by llama.cpp, with those of training.

    Args:
        tokenizer: Of training.
        template: Of training; None for plain text.
        path: The file.
        prompts: The user's questions.
        rows: Token ids of training or held-out rows; their text must come back as the same ids in both.
    """
    name = f"{NAME}:{path.name}"
    try:
        model = gguf_model.open_gguf(path, vocabulary_only=True)
    except MissingExtra as error:
        return Gate(name=name, measured={}, bound={}, verdict="not_proved", reason=str(error))
    text = gguf_model.chat_template(model)
    other = None
    if template is not None and text is not None:
        other = replace(template, text=text, tool_text=None, source=str(path))
    decoded = [tokenizer.decode(row, skip_special_tokens=False) for row in rows]
    return _gate(
        name, tokenizer, template, other, lambda item: gguf_model.tokenize(model, item), prompts, extra=decoded
    )


def _gate(
    name: str,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    other: ChatTemplate | None,
    encode: Callable[[str], list[int]],
    prompts: Sequence[str],
    *,
    extra: Sequence[str] = (),
) -> Gate:
    if template is not None and other is None:
        reason = f"it holds no chat template. {ADVICE}"
        return Gate(name=name, measured={}, bound={"different_texts": 0}, verdict="fail", reason=reason)
    trained = [*probes.texts(template, prompts), *extra]
    served = [*probes.texts(other, prompts), *extra]
    faults = [
        fault
        for left, right in zip(trained, served, strict=True)
        if (fault := _fault(left, right, tokenizer, encode)) is not None
    ]
    compared = sum(text is not None for text in trained)
    return text_gate(name, compared, faults, ADVICE)


def _fault(left: str | None, right: str | None, tokenizer: Tokenizer, encode: Callable[[str], list[int]]) -> str | None:
    if left != right:
        return f"rendered {right!r} where training renders {left!r}."
    if left is None:
        return None
    ours, theirs = tokenizer.encode(left, add_special_tokens=False), encode(left)
    if ours == theirs:
        return None
    place = next(
        (index for index, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]),
        min(len(ours), len(theirs)),
    )
    return (
        f"{left!r} becomes {theirs[place : place + 3]} at token {place} where training has {ours[place : place + 3]}."
    )
