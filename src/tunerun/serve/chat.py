"""`tunerun chat`: a conversation in the terminal, or one answer a line when piped."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunerun.errors import ExitCode, UserError
from tunerun.plan.placement import Placement
from tunerun.serve import options as asking
from tunerun.serve.conversation import Conversation
from tunerun.serve.local import LocalEngine
from tunerun.serve.spawn import Spawned

PROMPT = "> "
_HELP = """\
/history       list what was said, questions with their numbers
/edit N TEXT   ask TEXT instead of question N, and forget what came after it
/retry         answer the last question again, with another seed
/undo          forget the last question and its answer
/reset         forget what was said
/system TEXT   set the system prompt; without TEXT, remove it
/save FILE     add the conversation to a JSON-lines file that data.path can read
/quit          leave (also Ctrl+D, or Ctrl+C here)
/help          this list
Ctrl+C stops an answer."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a command wants to be asked next."""

    question: str
    retries: int = 0
    """How often the question has been answered before."""


class Leave(Exception):  # noqa: N818 (what the user asked for)
    """The user wants to leave."""


def main(argv: Sequence[str], placement: Placement | None = None, spawned: Spawned | None = None) -> int:
    """Talks to a model.

    Args:
        argv: Arguments after `chat`; the target is a path.
        placement: Device, precision and threads; None takes one CPU thread.
        spawned: A process for the engine that has been started already.

    Returns:
        The exit code.

    Raises:
        UserError: There is no such model, or an option cannot be used with it.
        StageError: The engine failed.
    """
    options = _parser().read(argv)
    target = asking.find_target(Path(options.target), options, checkpoint=options.checkpoint, base=options.base)
    if target.unverified or target.unchecked:
        print(f"warning: {target.unverified or target.unchecked}", file=sys.stderr)
    with LocalEngine(asking.engine_spec(target, placement or Placement(), options), spawned) as engine:
        # The first question needs it, and the engine is loading meanwhile.
        import tunerun.chat.jinja  # noqa: F401

        conversation = asking.begin(target, engine, options)
        if sys.stdin.isatty() and sys.stdout.isatty():
            _interactive(conversation, target.name)
        else:
            _piped(conversation)
    return ExitCode.DONE


def command(conversation: Conversation, line: str) -> str | Ask | None:
    """Does what a line that begins with a slash asks for.

    Returns:
        What to print or to ask, or None when the line is no known command.
    """
    word, _, rest = line.partition(" ")
    if word not in _COMMANDS:
        return None
    return _COMMANDS[word](conversation, rest.strip())


def _interactive(conversation: Conversation, name: str) -> None:
    # Gives input() a history and line editing.
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
    told = "talk" if conversation.template is not None else "it has no chat template and continues your text"
    print(f"{name}: {told}; /help lists commands")
    with contextlib.suppress(Leave, EOFError, KeyboardInterrupt):
        while True:
            _turn(conversation, input(PROMPT).strip())


def _turn(conversation: Conversation, line: str) -> None:
    told = command(conversation, line) if line.startswith("/") else Ask(line) if line else ""
    if isinstance(told, Ask):
        _stream(conversation, told)
    elif told != "":
        print(f"there is no command {line.split()[0]}; /help lists them" if told is None else told)


def _stream(conversation: Conversation, asked: Ask) -> None:
    forgotten = conversation.forgotten
    answer = conversation.ask(asked.question, retries=asked.retries)
    try:
        for piece in answer:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        # Once stops the answer. At the prompt, Ctrl+C leaves: twice leaves from here too.
        print(" [stopped]", end="")
    except UserError as error:
        print(error, end="", file=sys.stderr)
    finally:
        answer.close()
        print(flush=True)
    if conversation.forgotten > forgotten:
        print(f"(the context is full: {conversation.forgotten} messages are forgotten)", file=sys.stderr)


def _piped(conversation: Conversation) -> None:
    r"""Answers each line with a line; line breaks in an answer are written as `\n`."""
    with contextlib.suppress(Leave):
        for line in lines():
            told = command(conversation, line)
            asked = Ask(line) if told is None else told
            if isinstance(asked, str):
                print(asked, file=sys.stderr)
                continue
            print(one_line("".join(conversation.ask(asked.question, retries=asked.retries))), flush=True)


def one_line(text: str) -> str:
    r"""Writes line breaks as `\n` and `\r`."""
    return text.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n")


def lines() -> Iterator[str]:
    """Yields the lines of standard input that say something."""
    for line in sys.stdin:
        if line.strip():
            yield line.strip()


def _history(conversation: Conversation, _: str) -> str:
    lines = [] if conversation.system is None else [f"system: {conversation.system}"]
    for number, (question, answer) in enumerate(conversation.pairs(), start=1):
        lines += [f"{number}. {question}", f"   {answer}"]
    return "\n".join(lines) or "nothing was said yet"


def _edit(conversation: Conversation, rest: str) -> str | Ask:
    number, _, text = rest.partition(" ")
    if not number.isdecimal() or not text.strip():
        return "write the question's number and its new text: /edit 1 Who are you?"
    if not conversation.back_before(int(number)):
        return f"there is no question {number}; /history lists them"
    return Ask(text.strip())


def _retry(conversation: Conversation, _: str) -> str | Ask:
    retries = conversation.retries + 1
    question = conversation.undo()
    return "there is no question to answer again" if question is None else Ask(question, retries)


def _undo(conversation: Conversation, _: str) -> str:
    question = conversation.undo()
    return "there is no question to forget" if question is None else f"forgotten: {question}"


def _reset(conversation: Conversation, _: str) -> str:
    conversation.reset()
    return "forgotten"


def _system(conversation: Conversation, text: str) -> str:
    if conversation.template is None:
        return "the model has no chat template, so no system prompt"
    conversation.system = text or None
    return "the system prompt is set" if text else "the system prompt is removed"


def _save(conversation: Conversation, file: str) -> str:
    if not file:
        return "name a file: /save talk.jsonl"
    try:
        conversation.save(Path(file))
    except OSError as error:
        return f"{file}: {error.strerror}"
    return f"added to {file}"


def _quit(conversation: Conversation, _: str) -> str:  # noqa: ARG001 (the signature of commands)
    raise Leave


def _help(conversation: Conversation, _: str) -> str:  # noqa: ARG001 (the signature of commands)
    return _HELP


_COMMANDS: dict[str, Callable[[Conversation, str], str | Ask]] = {
    "/history": _history,
    "/edit": _edit,
    "/retry": _retry,
    "/undo": _undo,
    "/reset": _reset,
    "/system": _system,
    "/save": _save,
    "/quit": _quit,
    "/help": _help,
}


def _parser() -> asking.Parser:
    parser = asking.Parser("chat", description="Talk to a model.")
    target = "run directory, model folder, adapter folder, GGUF file, hub id, or BASE+ADAPTER"
    parser.add_argument("target", metavar="TARGET", help=target)
    parser.add_argument("--checkpoint", type=int, metavar="N", help="the run's model after step N")
    parser.add_argument("--base", action="store_true", help="the run's base model")
    asking.add_sampling(parser)
    return parser
