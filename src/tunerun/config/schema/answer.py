"""Keys of the section `answer`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tunerun.config.schema.kinds import DataFormat


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerConfig:
    """A teacher behind an OpenAI-compatible endpoint that answers prompts; its answers are trained on."""

    url: str | None = None
    """Address of the endpoint, such as `https://api.example.com/v1` or `http://127.0.0.1:8000/v1`; it may change while
    answers are collected, since a teacher is known by `model`."""
    model: str | None = None
    """Name of the teacher at the endpoint."""
    api_key_env: str | None = None
    """Environment variable that holds the endpoint's key; the key itself is written nowhere."""
    prompts: tuple[str, ...] = ()
    """File, folder, hub id of a data set, or list of these: rows with a question, lines of text, or conversations,
    whose answers are replaced one after the other (those with `"weight": 0` stay)."""
    format: DataFormat = "auto"
    """How the rows of `prompts` are read; `auto` looks at the first rows."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Column of each part of a prompt (system, user, text), by its name, in a workbook also by its letter."""
    sheet: str | None = None
    """Sheet of a workbook (.xlsx); null takes the only one that has rows."""
    max_prompts: int | None = None
    """Use only the first prompts, for a quick try."""
    system: str | None = None
    """System prompt for prompts that have none. It stays in the rows to train on; `data.system_override=true` with
    `data.system=` takes it out, so that the student answers so by itself."""
    samples: int = 1
    """Answers to each prompt."""
    temperature: float | None = None
    """Divides the logits before sampling; null leaves it to the endpoint."""
    top_p: float | None = None
    """Samples among the most likely tokens that together have this probability; null leaves it to the endpoint."""
    max_new_tokens: int | None = 2048
    """Longest answer, in tokens; null leaves it to the endpoint."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of a request, such as `{top_k: 20, chat_template_kwargs: {enable_thinking: false}}`; null leaves a
    field out that would be sent, such as `{seed: null}` for endpoints that refuse it."""
    keep_reasoning: bool = False
    """Whether thoughts that the endpoint sends apart from the answer become the message's `reasoning_content`."""
    on_truncated: Literal["drop", "keep"] = "drop"
    """What is done with an answer that `max_new_tokens` cut off."""
    max_dropped_fraction: float = 0.1
    """Share of rows that may be lost (cut off, empty, refused, not answered) before the stage fails."""
    concurrent: int = 8
    """Requests that wait for an answer at a time."""
    retries: int = 6
    """Times a request is sent again when the endpoint is busy, fails or does not answer; each waits longer."""
    timeout: float = 600.0
    """Longest wait for one answer, in seconds."""
