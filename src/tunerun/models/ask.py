"""Questions as a model sees them when served: through the chat template, or as plain text to go on from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunerun.chat.template import ChatTemplate, load_template
from tunerun.chat.tokenizer import Tokenizer, load_tokenizer
from tunerun.errors import Problem, UserError
from tunerun.models.stops import stop_token_ids


def encode_prompt(tokenizer: Tokenizer, template: ChatTemplate | None, prompt: str) -> list[int]:
    """Returns the token ids that a model answers.

    Args:
        tokenizer: Of the model.
        template: Chat template; None continues the prompt as plain text.
        prompt: A user's question.
    """
    if template is None:
        return tokenizer.encode(prompt, add_special_tokens=True)
    messages: Sequence[Any] = [{"role": "user", "content": prompt}]
    return tokenizer.encode(template.render(messages, generation_prompt=True), add_special_tokens=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """What is to be answered, and how answers end and become text."""

    tokenizer: Tokenizer
    texts: tuple[str, ...]
    """As the user wrote them."""
    token_ids: tuple[tuple[int, ...], ...]
    """As the model sees them."""
    stop_token_ids: frozenset[int]
    """Tokens that end an answer."""


def read_questions(folder: Path, prompts: Sequence[str], *, chat: bool, chat_template: str | None) -> Questions:
    """Prepares prompts for the model of a folder.

    Args:
        folder: Tokenizer, configs and chat template.
        prompts: A user's questions, or beginnings of texts.
        chat: Whether they go through the chat template.
        chat_template: Name or file that replaces the model's own template.

    Raises:
        UserError: The model has no chat template and needs one.
    """
    tokenizer = load_tokenizer(folder)
    template = load_template(folder, tokenizer.named, chat_template) if chat else None
    if chat and prompts and template is None:
        fix = "Set model.chat_template=chatml or a Jinja file."
        raise UserError(Problem(where="model.chat_template", what="the model has no chat template.", fix=fix))
    return Questions(
        tokenizer=tokenizer,
        texts=tuple(prompts),
        token_ids=tuple(tuple(encode_prompt(tokenizer, template, prompt)) for prompt in prompts),
        stop_token_ids=stop_token_ids(folder, tokenizer),
    )


def answer(
    network: Any,
    questions: Questions,
    *,
    max_new_tokens: int,
    batch_size: int,
    advance: Callable[[int], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Answers questions greedily.

    Args:
        network: A causal transformers model; it is in evaluation mode while it answers.
        questions: What to answer.
        max_new_tokens: Longest answer.
        batch_size: Questions answered at a time.
        advance: Told the number of questions after each batch.

    Returns:
        For each question `prompt`, `answer`, `tokens` and `stopped`: whether the model ended the answer itself.
    """
    from tunerun.models.attention import attention_of
    from tunerun.models.generate import answer_greedily

    was_training, found = network.training, list[dict[str, Any]]()
    network.eval()
    with attention_of(network, "sdpa"):
        for start in range(0, len(questions.texts), batch_size):
            part = slice(start, start + batch_size)
            answers = answer_greedily(
                network,
                questions.token_ids[part],
                max_new_tokens=max_new_tokens,
                stop_token_ids=questions.stop_token_ids,
            )
            for prompt, made in zip(questions.texts[part], answers, strict=True):
                text = questions.tokenizer.decode(made.token_ids)
                found.append({"prompt": prompt, "answer": text, "tokens": len(made.token_ids), "stopped": made.stopped})
            advance(len(answers))
    network.train(was_training)
    return found
