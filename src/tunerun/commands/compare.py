"""`tunerun compare TARGET [TARGET ...]`: the same questions to up to three models."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tunerun import artifacts, machine
from tunerun.commands import compare_table, target
from tunerun.commands.compare_table import Table
from tunerun.commands.data_convert import READING_OPTIONS, reading
from tunerun.data import read
from tunerun.data.questions import Question, read_questions
from tunerun.errors import ExitCode, Problem, UserError
from tunerun.launch.terminal import Event, Terminal, size
from tunerun.plan.placement import Placement
from tunerun.serve import compare
from tunerun.serve import options as asking
from tunerun.serve.compare import Answer
from tunerun.serve.targets import Target, by_weights

_BASE = "base"
# Tokens of an answer: a base model may never end one.
_LONGEST = 512
_DESCRIPTION = """\
Ask up to three models the same, and read their answers side by side. A run alone is compared with
its base model.

TARGET is a run directory, a model folder, an adapter folder, a GGUF file or a hub id; RUN@40 is the
run's model after step 40, RUN@base its base model; BASE+ADAPTER an adapter on its base.

    tunerun compare outputs/quickstart/<run>
    tunerun compare RUN@20 RUN@40 RUN --prompts questions.csv --output table.html
    echo 'Who are you?' | tunerun compare A B        # a line a question, a tab between answers"""


def main(argv: Sequence[str]) -> int:
    """Compares.

    Args:
        argv: Targets and the options that `tunerun compare --help` lists.

    Returns:
        The exit code: STAGE_FAILED when a question could not be answered.

    Raises:
        UserError: A target, an option or the file of questions is wrong, or the models do not fit together.
        StageError: An engine failed.
    """
    options = _parser().read(argv)
    _check(options)
    questions = None if options.prompts is None else _questions(options)
    targets = _targets(options)
    for item in targets:
        if item.unverified:
            print(f"warning: {item.unverified}", file=sys.stderr)
    placement = target.placement()
    if questions is not None:
        return _table(targets, questions, placement, options)
    _check_memory(targets, placement, options)
    names = [item.name for item in targets]
    with compare.loaded(targets, placement, options) as conversations:
        faults = compare.talk(conversations, names)
    return _told(faults)


def _table(
    targets: Sequence[Target], questions: Sequence[Question], placement: Placement, options: argparse.Namespace
) -> int:
    answers = _answers(targets, questions, placement, options)
    settings = {name: vars(options)[name] for name in compare_table.SETTINGS}
    table = compare_table.build([item.name for item in targets], questions, answers, settings)
    if options.output is not None:
        artifacts.write_text(options.output, compare_table.RENDERERS[options.output.suffix](table))
    _print(table, told=options.output is None)
    if options.output is not None:
        print(f"{options.output}: {len(questions):,} questions, {len(targets)} models")
    return _told([answer.fault for row in answers for answer in row if answer.fault])


def _told(faults: Sequence[str]) -> int:
    if faults:
        print(f"warning: {len(faults):,} answers are missing; the first: {faults[0]}", file=sys.stderr)
    return ExitCode.STAGE_FAILED if faults else ExitCode.DONE


def _answers(
    targets: Sequence[Target], questions: Sequence[Question], placement: Placement, options: argparse.Namespace
) -> list[list[Answer]]:
    """Returns each model's answers; models on the same weights are loaded together, others one after the other."""
    terminal, started, count = Terminal(sys.stderr, sys.stderr), time.monotonic(), 0
    total = len(targets) * len(questions)

    def report(name: str, *, done: bool = False) -> None:
        seconds = time.monotonic() - started
        event = Event(label="compare", count=count, total=total, unit="answers", seconds=seconds, note=name, done=done)
        terminal.event(event)

    def advance() -> None:
        nonlocal count
        count += 1
        report(item.name)

    found, asked = {}, [question.messages for question in questions]
    for group in by_weights(targets):
        report(f"loading {group[0].name}")
        with compare.loaded(group, placement, options) as conversations:
            for item, conversation in zip(group, conversations, strict=True):
                found[item.name] = compare.answer_all(conversation, asked, advance)
    report("", done=True)
    return [found[item.name] for item in targets]


def _print(table: Table, *, told: bool) -> None:
    for row in table.rows if told else ():
        if sys.stdout.isatty():
            print(f"> {row.question}")
            if row.reference is not None:
                print(f"  reference: {row.reference}")
        compare.show(table.models, row.answers)
    if table.scores:
        # Below the answers on a terminal, apart from them in a pipe.
        print(compare_table.scores_text(table), file=sys.stdout if sys.stdout.isatty() or not told else sys.stderr)


def _questions(options: argparse.Namespace) -> list[Question]:
    given = {name: vars(options)[_key(name)] for name in READING_OPTIONS if vars(options)[_key(name)] is not None}
    files = read.find_files([str(options.prompts)], "--prompts")
    return read_questions(files, reading(given), "--prompts")[: options.max_prompts]


def _key(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _targets(options: argparse.Namespace) -> list[Target]:
    words = list(options.targets)
    found = [_target(word, options) for word in words]
    if len(found) == 1:
        path, step, base = _split(words[0])
        if base or step is not None or not (path / artifacts.MODEL).is_file():
            what = "is one model, and there is nothing to compare it with."
            raise UserError(Problem(where=words[0], what=what, fix="Name another one, or a run by itself."))
        words, found = [f"{words[0]}@{_BASE}", words[0]], [_target(f"{words[0]}@{_BASE}", options), *found]
    if len(set(words)) < len(words):
        raise UserError(
            Problem(where="compare", what="a model is named twice, and would say the same.", fix="Name it once.")
        )
    counts = Counter(item.name for item in found)
    # Adapters are called by the name of their target.
    return [
        item if counts[item.name] == 1 else replace(item, name=word) for word, item in zip(words, found, strict=True)
    ]


def _target(word: str, options: argparse.Namespace) -> Target:
    path, step, base = _split(word)
    return asking.find_target(path, options, checkpoint=step, base=base)


def _split(word: str) -> tuple[Path, int | None, bool]:
    """Takes `@40` or `@base` off a target.

    Returns:
        The path, the step of a checkpoint, and whether the base model is meant.
    """
    name, at, suffix = word.rpartition("@")
    if at and name and not Path(word).exists():
        if suffix == _BASE:
            return target.local_path(name), None, True
        if suffix.isdecimal():
            return target.local_path(name), int(suffix), False
    return target.local_path(word), None, False


def _check(options: argparse.Namespace) -> None:
    problems = []
    if len(options.targets) > compare.MAX_TARGETS:
        what = f"{len(options.targets)} models are more than can stand side by side."
        problems.append(Problem(where="compare", what=what, fix=f"Name at most {compare.MAX_TARGETS}."))
    if options.prompts is None:
        needy = ("--output", "--max-prompts", *READING_OPTIONS)
        given = [option for option in needy if vars(options)[_key(option)] is not None]
        problems += [Problem(where=option, what="needs --prompts, a file of questions.") for option in given]
    elif options.output is not None and options.output.suffix not in compare_table.RENDERERS:
        fix = f"End it in {', '.join(compare_table.RENDERERS)}."
        problems.append(Problem(where="--output", what=f"{options.output} names no kind of table.", fix=fix))
    if problems:
        raise UserError(problems)


def _check_memory(targets: Sequence[Target], placement: Placement, options: argparse.Namespace) -> None:
    """Refuses models that cannot all be loaded.

    Raises:
        UserError: Their weights take more memory than there is.
    """
    facts = machine.facts()
    room = facts.memory_bytes if placement.device == "cpu" else facts.gpus[0].memory_bytes
    loaded = [group[0] for group in by_weights(targets)]
    needed = sum(map(weight_bytes, loaded)) * (options.bits or 16) // 16
    if needed > room:
        what = f"the weights of {len(loaded)} models take {size(needed)}, and there are {size(room)}."
        fix = "Give questions by --prompts, which loads one model at a time, or take --bits 4."
        raise UserError(Problem(where="compare", what=what, fix=fix))


def weight_bytes(item: Target) -> int:
    """Returns the size of a model's weights on disk, without its adapter."""
    files = [item.weights] if item.weights.is_file() else item.weights.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)


def _parser() -> asking.Parser:
    parser = asking.Parser("compare", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", metavar="TARGET", nargs="+", help="two or three models, or one run")
    parser.add_argument("--prompts", type=Path, metavar="FILE",
                        help="questions, with or without answers: JSON lines, CSV, Excel, text, ...")  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE", help="write a table: .md, .html or .json")
    parser.add_argument("--max-prompts", type=asking.within(1, 1 << 30, int), metavar="N", help="take the first N")
    parser.add_argument("--columns", action="append", metavar="PART=COLUMN",
                        help="column of each part (user, assistant, system), by name or letter")  # fmt: skip
    parser.add_argument("--format", action="append", help="how rows are read (auto)")
    parser.add_argument("--sheet", action="append", metavar="NAME", help="sheet of a workbook")
    asking.add_sampling(parser, longest=_LONGEST)
    return parser
