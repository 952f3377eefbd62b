"""The same questions to several models: in turn on a terminal or line by line, or one model after the other."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tunerun import columns
from tunerun.errors import Problem, UserError
from tunerun.plan.placement import Placement
from tunerun.serve import chat
from tunerun.serve import options as asking
from tunerun.serve.conversation import Conversation
from tunerun.serve.local import LocalEngine
from tunerun.serve.targets import Target

MAX_TARGETS = 3
# Of a column; narrower ones stand below each other.
_MIN_COLUMNS = 24
_MAX_LINES = 1 << 20
_PROMPT = "> "
_HELP = """\
/retry         ask the last question again, with another seed
/undo          forget the last question and its answers
/reset         forget what was said
/system TEXT   set the system prompt; without TEXT, remove it
/save FILE     add each model's conversation to a JSON-lines file that data.path can read
/quit          leave (also Ctrl+D, or Ctrl+C here)
/help          this list
Ctrl+C stops an answer."""
_COMMANDS = ("/retry", "/undo", "/reset", "/system", "/save", "/quit", "/help")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says to a question."""

    text: str
    fault: str = ""
    """Why there is none; empty when there is."""


@contextmanager
def loaded(target: Target, placement: Placement, options: argparse.Namespace) -> Iterator[Conversation]:
    """Loads a model and begins a conversation with it.

    Args:
        target: The model.
        placement: Device, precision and threads.
        options: Those of `options.add_sampling`.

    Raises:
        UserError: It has no chat template, and a system prompt is set.
        StageError: The engine failed.
    """
    with LocalEngine(asking.engine_spec(target, placement, options)) as engine:
        template = target.chat_template(engine.ready)
        if template is None and options.system is not None:
            what = f"{target.name} has no chat template, so no system prompt."
            raise UserError(Problem(where="--system", what=what))
        yield Conversation(
            engine=engine,
            template=template,
            sampling=asking.sampling(options),
            adapter=target.adapter_name,
            system=options.system,
        )


def answer_all(
    conversation: Conversation, questions: Sequence[Sequence[Mapping[str, Any]]], advance: Callable[[], None]
) -> list[Answer]:
    """Answers questions, each in a conversation of its own.

    Args:
        conversation: Its system prompt goes to questions that have none.
        questions: Messages of each, the last one a user's.
        advance: Called after each.

    Raises:
        StageError: The engine failed.
    """
    found, system = [], conversation.system
    for messages in questions:
        turns = [{"role": item["role"], "content": item["content"]} for item in messages[:-1]]
        conversation.system = turns.pop(0)["content"] if turns and turns[0]["role"] == "system" else system
        conversation.turns = turns
        found.append(_answer(conversation, chat.Ask(messages[-1]["content"])))
        advance()
    conversation.turns, conversation.system = [], system
    return found


def talk(conversations: Sequence[Conversation], names: Sequence[str]) -> list[str]:
    """Asks every model what comes from the terminal, or from each line of a pipe.

    Answers are side by side on a terminal; into a pipe goes one line a question, with a tab between answers.

    Args:
        conversations: At least one.
        names: Of the models.

    Returns:
        Why answers are missing.

    Raises:
        StageError: An engine failed.
    """
    faults: list[str] = []
    with contextlib.suppress(chat.Leave, EOFError):
        for line in _typed(names) if sys.stdin.isatty() else chat.lines():
            told = _command(conversations, line)
            if isinstance(told, str):
                print(told, file=sys.stderr)
                continue
            answers = [
                _shown(conversation, name, ask)
                for conversation, name, ask in zip(conversations, names, told, strict=True)
            ]
            show(names, answers)
            faults += [answer.fault for answer in answers if answer.fault]
    return faults


def show(names: Sequence[str], answers: Sequence[Answer]) -> None:
    """Prints answers: side by side on a terminal, else in one line with tabs between them."""
    if sys.stdout.isatty():
        texts = [answer.text or f"({answer.fault or 'nothing'})" for answer in answers]
        print("\n".join(beside(names, texts, _width())), flush=True)
    else:
        print("\t".join(chat.one_line(answer.text).replace("\t", "\\t") for answer in answers), flush=True)


def beside(names: Sequence[str], texts: Sequence[str], width: int) -> list[str]:
    """Lays answers out below the names of their models.

    Args:
        names: Of the models.
        texts: Their answers.
        width: Columns of the terminal; where they are few, answers stand below each other.
    """
    if width // len(names) < _MIN_COLUMNS:
        pairs = zip(names, texts, strict=True)
        return [line for name, text in pairs for line in (name.upper(), *columns.wrap(text, width, _MAX_LINES), "")]
    heads = columns.side_by_side([name.upper() for name in names], width, 1)
    return [*heads, *columns.side_by_side(texts, width, _MAX_LINES), ""]


def _answer(conversation: Conversation, ask: chat.Ask) -> Answer:
    answer, said = conversation.ask(ask.question, retries=ask.retries), list[str]()
    try:
        said.extend(answer)
    except UserError as error:
        return Answer("", str(error))
    finally:
        answer.close()
    return Answer("".join(said))


def _shown(conversation: Conversation, name: str, ask: chat.Ask) -> Answer:
    """Lets a model answer; on a terminal it says how far the answer is."""
    answer, said, told = conversation.ask(ask.question, retries=ask.retries), list[str](), sys.stderr.isatty()
    try:
        for piece in answer:
            said.append(piece)
            if told:
                _tell(f"{name} has written {sum(map(len, said)):,} characters")
    except KeyboardInterrupt:
        said.append(" [stopped]")
    except UserError as error:
        return Answer("", str(error))
    finally:
        answer.close()
        if told:
            _tell("")
    return Answer("".join(said))


def _tell(text: str) -> None:
    print(f"\r\x1b[K{columns.cut(text, _width() - 1)}", end="", file=sys.stderr, flush=True)


def _command(conversations: Sequence[Conversation], line: str) -> str | list[chat.Ask]:
    """Does what a line asks for: returns what to tell, or what each model is asked."""
    word = line.split()[0]
    if not line.startswith("/"):
        return [chat.Ask(line)] * len(conversations)
    if word not in _COMMANDS:
        return f"there is no command {word}; /help lists them"
    if word == "/help":
        return _HELP
    told = [chat.command(conversation, line) for conversation in conversations]
    asks = [item for item in told if isinstance(item, chat.Ask)]
    return asks if len(asks) == len(told) else next(item for item in told if isinstance(item, str))


def _typed(names: Sequence[str]) -> Iterator[str]:
    # Gives input() a history and line editing.
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
    print(f"{', '.join(names)}: ask them the same; /help lists commands")
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            line = input(_PROMPT).strip()
            if line:
                yield line


def _width() -> int:
    return shutil.get_terminal_size().columns
