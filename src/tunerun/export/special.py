"""Special tokens and the chat template, as a server needs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunerun.chat.faults import ChatFault
from tunerun.chat.template import ChatTemplate
from tunerun.chat.tokenizer import Tokenizer, read_object
from tunerun.errors import Problem, UserError

_PROBE = "tunerun-probe"
_CONVERSATION = ({"role": "user", "content": "x"}, {"role": "assistant", "content": _PROBE})


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecialTokens:
    """What ends an answer and what is put around a prompt."""

    end_of_turn: int | None
    """Token that ends an assistant's turn when it is not the tokenizer's own `eos_token`."""
    adds_bos: bool
    """Whether the tokenizer puts the beginning-of-sequence token before a text."""
    adds_eos: bool
    """Whether it puts the end-of-sequence token after a text."""
    starts_chats: bool
    """Whether a conversation begins with an added token."""
    stops: tuple[str, ...]
    """Texts of the tokens that end an answer, the end of a turn first."""


def read_special(folder: Path, tokenizer: Tokenizer, template: ChatTemplate | None) -> SpecialTokens:
    """Works out the special tokens of a model by trying its tokenizer and its template.

    Args:
        folder: Model folder; its generation_config.json may name further end tokens.
        tokenizer: Of the folder.
        template: That the model is used with, if any.

    Raises:
        UserError: The template refuses a plain question and answer.
    """
    plain = tokenizer.encode("a", add_special_tokens=False)
    framed = tokenizer.encode("a", add_special_tokens=True)
    rendered = _render(template) if template else ""
    turn_end = _turn_end(tokenizer, rendered)
    eos = tokenizer.named.get("eos_token")
    more = read_object(folder / "generation_config.json").get("eos_token_id")
    ids = more if isinstance(more, list) else [more] if isinstance(more, int) else []
    texts = [turn_end, eos, *(tokenizer.backend.id_to_token(number) for number in ids)]
    return SpecialTokens(
        end_of_turn=tokenizer.backend.token_to_id(turn_end) if turn_end and turn_end != eos else None,
        adds_bos=len(framed) > len(plain) and framed[0] == tokenizer.token_id("bos_token"),
        adds_eos=len(framed) > len(plain) and framed[-1] == tokenizer.token_id("eos_token"),
        starts_chats=tokenizer.added is not None and tokenizer.added.match(rendered) is not None,
        stops=tuple(dict.fromkeys(text for text in texts if text)),
    )


def _render(template: ChatTemplate) -> str:
    try:
        return template.render(_CONVERSATION)
    except ChatFault as fault:
        raise UserError(Problem(where=template.source, what=f"{fault.detail}.")) from fault


def _turn_end(tokenizer: Tokenizer, rendered: str) -> str | None:
    after = rendered.rpartition(_PROBE)[2]
    found = tokenizer.added.search(after) if tokenizer.added else None
    return found[0] if found else None
