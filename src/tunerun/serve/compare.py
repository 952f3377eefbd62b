"""The same questions to several models: in turn on a terminal or line by line, or one model after the other."""

from __future__ import annotations

import argparse
import contextlib
import queue
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tunerun.errors import UserError
from tunerun.plan.placement import Placement
from tunerun.serve import chat
from tunerun.serve import options as asking
from tunerun.serve.beside import Writer, writer
from tunerun.serve.conversation import Conversation
from tunerun.serve.local import LocalEngine
from tunerun.serve.targets import Target, by_weights

MAX_TARGETS = 3
_STOP_SECONDS = 0.05
_STOPPED = " [stopped]"
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


# Of an answer, by its place; None is its end.
Pieces = queue.SimpleQueue[tuple[int, str | None]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says to a question."""

    text: str
    fault: str = ""
    """Why there is none, or no more; empty when nothing went wrong."""

    @property
    def shown(self) -> str:
        """The answer for people to read."""
        return f"{self.text}({self.fault})" if self.fault else self.text or "(nothing)"


@contextmanager
def loaded(
    targets: Sequence[Target], placement: Placement, options: argparse.Namespace
) -> Iterator[list[Conversation]]:
    """Loads models, those on the same weights once, and begins a conversation with each.

    Args:
        targets: The models; their names differ.
        placement: Device, precision and threads; engines share the threads, for they answer at the same time.
        options: Those of `options.add_sampling`.

    Raises:
        UserError: A model has no chat template, and a system prompt is set.
        StageError: An engine failed.
    """
    groups = by_weights(targets)
    share = replace(placement, threads=max(placement.threads // len(groups), 1))
    with ExitStack() as stack:
        # All of them load at the same time.
        engines: dict[str, LocalEngine] = {}
        for group in groups:
            engine = stack.enter_context(LocalEngine(asking.shared_spec(group, share, options)))
            engines |= dict.fromkeys((target.name for target in group), engine)
        yield [asking.begin(target, engines[target.name], options) for target in targets]


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

    On a terminal all answers are written at the same time; into a pipe goes one line a question, with a tab between
    answers.

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
            is_terminal = sys.stdout.isatty()
            answers = answers_at_once(conversations, told, writer(names, sys.stdout) if is_terminal else None)
            if not is_terminal:
                show(names, answers)
            faults += [answer.fault for answer in answers if answer.fault]
    return faults


def answers_at_once(
    conversations: Sequence[Conversation], asks: Sequence[chat.Ask], screen: Writer | None
) -> list[Answer]:
    """Lets all models answer at the same time, on a thread each; Ctrl+C stops those that still write.

    Args:
        conversations: One for each model.
        asks: What each is asked.
        screen: Shows the answers while they are written.

    Raises:
        StageError: An engine failed.
    """
    pieces: Pieces = queue.SimpleQueue()
    stopped: list[bool] = []

    def answered(place: int) -> Answer:
        try:
            return _answer(conversations[place], asks[place], lambda piece: pieces.put((place, piece)))
        finally:
            pieces.put((place, None))

    with ThreadPoolExecutor(len(asks)) as pool:
        answers = [pool.submit(answered, place) for place in range(len(asks))]
        try:
            _follow(answers, pieces, screen)
        except KeyboardInterrupt:
            stopped = [not answer.done() for answer in answers]
        finally:
            # Again and again, for a thread may only be about to ask.
            while wait(answers, _STOP_SECONDS).not_done:
                for conversation in conversations:
                    conversation.engine.stop_answers()
    found = [answer.result() for answer in answers]
    if stopped:
        found = [
            replace(answer, text=answer.text + _STOPPED) if cut else answer
            for answer, cut in zip(found, stopped, strict=True)
        ]
    if screen is not None:
        screen.show([answer.shown for answer in found], [False] * len(found))
    return found


def show(names: Sequence[str], answers: Sequence[Answer]) -> None:
    """Prints answers: side by side on a terminal, else in one line with tabs between them."""
    if sys.stdout.isatty():
        writer(names, sys.stdout).show([answer.shown for answer in answers], [False] * len(answers))
    else:
        print("\t".join(chat.one_line(answer.text).replace("\t", "\\t") for answer in answers), flush=True)


def _answer(conversation: Conversation, ask: chat.Ask, tell: Callable[[str], None] = lambda _: None) -> Answer:
    """Lets a model answer, and tells each piece."""
    answer, said = conversation.ask(ask.question, retries=ask.retries), list[str]()
    try:
        for piece in answer:
            said.append(piece)
            tell(piece)
    except UserError as error:
        return Answer("".join(said), str(error))
    finally:
        answer.close()
    return Answer("".join(said))


def _follow(answers: Sequence[Future[Answer]], pieces: Pieces, screen: Writer | None) -> None:
    """Shows pieces as they come, until all answers have ended; their end is the caller's to show."""
    texts, open_ = [""] * len(answers), [True] * len(answers)
    while any(open_):
        place, piece = pieces.get()
        if piece is not None:
            texts[place] += piece
        else:
            texts[place], open_[place] = answers[place].result().shown, False
        # Drawing all that is there at once keeps up with models that are faster than the terminal.
        if screen is not None and pieces.empty() and any(open_):
            screen.show(texts, open_)


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
            line = input(chat.PROMPT).strip()
            if line:
                yield line
