"""`tunerun chat`: a conversation in the terminal, or one answer a line when piped."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tunerun.errors import ExitCode, Problem, UserError
from tunerun.plan.steps import Placement
from tunerun.serve.conversation import Conversation, Sampling
from tunerun.serve.local import LocalEngine
from tunerun.serve.targets import resolve_target

_PROMPT = "> "
# Below it, probabilities leave the range of float32.
_COLDEST = 1e-3
_HELP = """\
/reset         forget what was said
/system TEXT   set the system prompt; without TEXT, remove it
/save FILE     add the conversation to a JSON-lines file that data.path can read
/quit          leave (also Ctrl+D, or Ctrl+C here)
/help          this list
Ctrl+C stops an answer."""


class _Leave(Exception):  # noqa: N818 (what the user asked for)
    """The user wants to leave."""


def main(argv: Sequence[str], placement: Placement | None = None) -> int:
    """Talks to a model.

    Args:
        argv: Arguments after `chat`; the target is a path.
        placement: Device, precision and threads; None takes one CPU thread.

    Returns:
        The exit code.

    Raises:
        UserError: There is no such model, or an option cannot be used with it.
        StageError: The engine failed.
    """
    options = _parser().parse_args(argv)
    target = resolve_target(Path(options.target), checkpoint=options.checkpoint, base=options.base)
    if target.unverified or target.unchecked:
        print(f"warning: {target.unverified or target.unchecked}", file=sys.stderr)
    with LocalEngine(target.spec(placement or Placement(), None)) as engine:
        template = target.chat_template(engine.ready)
        if template is None and options.system is not None:
            raise UserError(Problem(where="--system", what="the model has no chat template, so no system prompt."))
        conversation = Conversation(
            engine=engine,
            template=template,
            sampling=_sampling(options),
            adapter=target.adapter_name,
            system=options.system,
        )
        if sys.stdin.isatty() and sys.stdout.isatty():
            _interactive(conversation, target.name)
        else:
            _piped(conversation)
    return ExitCode.DONE


def command(conversation: Conversation, line: str) -> str | None:
    """Does what a line that begins with a slash asks for.

    Returns:
        What to print, or None when the line is no known command.
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
    with contextlib.suppress(_Leave, EOFError, KeyboardInterrupt):
        while True:
            _turn(conversation, input(_PROMPT).strip())


def _turn(conversation: Conversation, line: str) -> None:
    if line.startswith("/"):
        told = command(conversation, line)
        print(f"there is no command {line.split()[0]}; /help lists them" if told is None else told)
    elif line:
        _stream(conversation, line)


def _stream(conversation: Conversation, question: str) -> None:
    forgotten = conversation.forgotten
    answer = conversation.ask(question)
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
    with contextlib.suppress(_Leave):
        for line in _lines():
            told = command(conversation, line)
            if told is not None:
                print(told, file=sys.stderr)
                continue
            answer = "".join(conversation.ask(line))
            print(answer.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n"), flush=True)


def _lines() -> Iterator[str]:
    for line in sys.stdin:
        if line.strip():
            yield line.strip()


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
    raise _Leave


def _help(conversation: Conversation, _: str) -> str:  # noqa: ARG001 (the signature of commands)
    return _HELP


_COMMANDS: dict[str, Callable[[Conversation, str], str]] = {
    "/reset": _reset,
    "/system": _system,
    "/save": _save,
    "/quit": _quit,
    "/help": _help,
}


def _sampling(options: argparse.Namespace) -> Sampling:
    return Sampling(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
        stop=tuple(options.stop),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tunerun chat", description="Talk to a model.", allow_abbrev=False)
    parser.add_argument("target", metavar="TARGET", help="run directory, model folder, adapter folder or GGUF file")
    parser.add_argument("--checkpoint", type=int, metavar="N", help="the run's model after step N")
    parser.add_argument("--base", action="store_true", help="the run's base model")
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    parser.add_argument("--max-new-tokens", type=_within(1, 1 << 20, int), default=512, metavar="N",
                        help="longest answer (512)")  # fmt: skip
    parser.add_argument("--temperature", type=_temperature, default=0.0, metavar="T",
                        help="0 to 2; 0 takes the likeliest token (0)")  # fmt: skip
    parser.add_argument("--top-k", type=_within(0, 1 << 20, int), default=0, metavar="K",
                        help="choose among the K likeliest tokens; 0 for all (0)")  # fmt: skip
    parser.add_argument("--top-p", type=_within(1e-6, 1, float), default=1.0, metavar="P",
                        help="choose among the likeliest tokens with this probability together (1)")  # fmt: skip
    parser.add_argument("--seed", type=_within(0, (1 << 32) - 1, int), default=0, metavar="S",
                        help="decides the choices (0)")  # fmt: skip
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", type=_text,
                        help="ends an answer; may be repeated")  # fmt: skip
    return parser


def _within(low: float, high: float, kind: Callable[[str], float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be from {low:g} to {high:g}")
        return value

    return number


def _temperature(text: str) -> float:
    value = float(text)
    if value != 0 and not _COLDEST <= value <= 2:
        raise argparse.ArgumentTypeError(f"must be 0, or from {_COLDEST:g} to 2")
    return value


def _text(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text
