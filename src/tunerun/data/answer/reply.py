"""What a teacher sent back for one request, as a journal keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["good", "cut-off", "empty", "refused", "no-text"]
_COUNTS = ("prompt_tokens", "completion_tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """An answer of the endpoint."""

    text: str
    reasoning: str | None
    """Thoughts that came apart from the answer."""
    finish_reason: str | None
    """Why it ended: `stop`, `length`, `content_filter`, ..."""
    refusal: str | None
    """OpenAI's field for an answer that the model declined to give."""
    model: str | None
    """Who answered, as the endpoint says."""
    usage: Mapping[str, int]
    """`prompt_tokens` and `completion_tokens`, as far as the endpoint says."""

    @property
    def verdict(self) -> Verdict:
        """What it is good for, before settings have their say."""
        if self.refusal or self.finish_reason == "content_filter":
            return "refused"
        if self.finish_reason in ("tool_calls", "function_call"):
            return "no-text"
        if not self.text.strip():
            # A thought that used up all tokens leaves no answer.
            return "cut-off" if self.finish_reason == "length" else "empty"
        return "cut-off" if self.finish_reason == "length" else "good"


def to_json(reply: Reply) -> dict[str, Any]:
    """Turns a reply into plain data."""
    return asdict(reply)


def from_json(data: Mapping[str, Any]) -> Reply:
    """Builds a reply from what `to_json` returned."""
    return Reply(**data)


def parse(body: Any) -> Reply:
    """Reads the body of a chat completion.

    Raises:
        ValueError: It is none.
    """
    try:
        choice = body["choices"][0]
        message = choice["message"]
        content = message.get("content")
        found = Reply(
            text=_text(content),
            # vLLM and DeepSeek name it so, newer vLLM and OpenRouter `reasoning`.
            reasoning=_optional(message.get("reasoning_content")) or _optional(message.get("reasoning")),
            finish_reason=_optional(choice.get("finish_reason")),
            refusal=_optional(message.get("refusal")),
            model=_optional(body.get("model")),
            usage=_usage(body.get("usage")),
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError("is no chat completion") from error
    for text in (found.text, found.reasoning or ""):
        # Half a surrogate pair has no UTF-8 form: no file could hold it.
        text.encode("utf-8")
    return found


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part["type"] == "text")
    if content is not None and not isinstance(content, str):
        raise TypeError("the content is no text")
    return content or ""


def _optional(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _usage(value: Any) -> dict[str, int]:
    counts = value if isinstance(value, dict) else {}
    return {name: counts[name] for name in _COUNTS if type(counts.get(name)) is int}
