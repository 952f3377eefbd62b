"""Options that verbs which ask models themselves have in common."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tunerun.config.typed import nearest
from tunerun.errors import Problem, UserError
from tunerun.plan.placement import Placement
from tunerun.plan.steps import Quantisation
from tunerun.serve.conversation import Conversation, Sampling
from tunerun.serve.local import LocalEngine
from tunerun.serve.protocol import EngineSpec
from tunerun.serve.requests import COLDEST
from tunerun.serve.targets import Target, group_spec, resolve_target


class Parser(argparse.ArgumentParser):
    """Tells what is wrong with arguments as other verbs do."""

    def __init__(self, verb: str, **options: Any) -> None:
        """Takes the verb and what argparse takes; an option is not to be abbreviated."""
        super().__init__(prog=f"tunerun {verb}", allow_abbrev=False, **options)

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """Returns the values of all options and arguments.

        Raises:
            UserError: One is unknown, missing or wrong.
        """
        found, rest = self.parse_known_args(argv)
        for word in rest:
            if word.startswith("-"):
                name, known = word.partition("=")[0], list(self._option_string_actions)
                raise UserError(f"there is no option {name} here. {nearest(name, known)}")
        if rest:
            raise UserError(f"{' '.join(rest)}: one argument is taken, and there are more.")
        return found

    def error(self, message: str) -> NoReturn:
        """Is called by argparse."""
        raise UserError(f"{message.removeprefix('argument ')}. All options: {self.prog} --help")


def add_sampling(parser: argparse.ArgumentParser, *, longest: int | None = None) -> None:
    """Adds how a model is asked.

    Args:
        parser: Of a verb.
        longest: Tokens of an answer when nothing is said; None lets it fill the context.
    """
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    parser.add_argument("--max-new-tokens", type=within(1, 1 << 20, int), default=longest, metavar="N",
                        help=f"longest answer ({longest or 'what is left of the context'})")  # fmt: skip
    parser.add_argument("--temperature", type=_temperature, default=0.0, metavar="T",
                        help="0 to 2; 0 takes the likeliest token (0)")  # fmt: skip
    parser.add_argument("--top-k", type=within(0, 1 << 20, int), default=0, metavar="K",
                        help="choose among the K likeliest tokens; 0 for all (0)")  # fmt: skip
    parser.add_argument("--top-p", type=within(1e-6, 1, float), default=1.0, metavar="P",
                        help="choose among the likeliest tokens with this probability together (1)")  # fmt: skip
    parser.add_argument("--seed", type=within(0, (1 << 32) - 1, int), default=0, metavar="S",
                        help="decides the choices (0)")  # fmt: skip
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", type=_text,
                        help="ends an answer; may be repeated")  # fmt: skip
    parser.add_argument("--bits", type=int, choices=(4, 8),
                        help="load a model folder's weights in NF4 or int8 (needs bitsandbytes)")  # fmt: skip


def sampling(options: argparse.Namespace) -> Sampling:
    """Returns how tokens are chosen."""
    return Sampling(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
        stop=tuple(options.stop),
    )


def find_target(path: Path, options: argparse.Namespace, *, checkpoint: int | None, base: bool) -> Target:
    """Finds what a verb names, as a model folder where `--bits` asks for less than its weights have.

    Raises:
        UserError: There is no such model, or its weights cannot be loaded in fewer bits.
    """
    if options.bits is None:
        return resolve_target(path, checkpoint=checkpoint, base=base)
    if path.is_file():
        what = f"{path} is a GGUF file, whose weights are as they are."
        raise UserError(Problem(where="--bits", what=what, fix="Export another type, or name a model folder."))
    return resolve_target(path, engine="transformers", checkpoint=checkpoint, base=base)


def engine_spec(target: Target, placement: Placement, options: argparse.Namespace) -> EngineSpec:
    """Returns what the engine of a target loads."""
    return shared_spec([target], placement, options)


def shared_spec(group: Sequence[Target], placement: Placement, options: argparse.Namespace) -> EngineSpec:
    """Returns what the engine of targets on the same weights loads, each of them asked for one answer at a time."""
    spec = dataclasses.replace(group_spec(group, placement, None), answers=len(group))
    if options.bits is None:
        return spec
    # As qlora does by default.
    return dataclasses.replace(spec, quantisation=Quantisation(bits=options.bits, double=True))


def begin(target: Target, engine: LocalEngine, options: argparse.Namespace) -> Conversation:
    """Begins a conversation, once the engine is ready.

    Raises:
        UserError: The model has no chat template, and a system prompt is set.
        StageError: The engine cannot be loaded.
    """
    template = target.chat_template(engine.ready)
    if template is None and options.system is not None:
        what = f"{target.name} has no chat template, so no system prompt."
        raise UserError(Problem(where="--system", what=what))
    return Conversation(
        engine=engine,
        template=template,
        sampling=sampling(options),
        adapter=target.adapter_name,
        system=options.system,
    )


def within(low: float, high: float, kind: Callable[[str], float]) -> Callable[[str], float]:
    """Returns what reads a number that must lie within bounds."""

    def number(text: str) -> float:
        value = _number(text, kind)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be from {low} to {high}")
        return value

    return number


def _number(text: str, kind: Callable[[str], float]) -> float:
    # What argparse says of a ValueError has the name of the function in it.
    try:
        return kind(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole ' if kind is int else ''}number") from error


def _temperature(text: str) -> float:
    value = _number(text, float)
    if value != 0 and not COLDEST <= value <= 2:
        raise argparse.ArgumentTypeError(f"must be 0, or from {COLDEST:g} to 2")
    return value


def _text(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text
