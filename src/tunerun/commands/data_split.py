"""`tunerun data split FILE`: writes a file of rows as two, one to train and one to evaluate on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunerun.commands import arguments
from tunerun.commands.data_convert import READING_OPTIONS, reading, reading_help, refuse_existing
from tunerun.data.split_file import split_file, targets
from tunerun.errors import ExitCode, UserError

_HELP = """\
tunerun data split FILE --eval SHARE [options]
  Writes FILE-train.EXT and FILE-eval.EXT, each row with the bytes it has in FILE: JSON lines, a JSON
  array, CSV, TSV (both with the header) or text, compressed by gzip or not. Equal rows stay together,
  and rows that are appended to FILE later move no other.

    --eval SHARE           rows to evaluate on: a share below 1, such as 0.1, or a number of rows
    --seed N               of the choice (default: 0); data.eval_fraction=SHARE chooses the same rows
                           from FILE in a run with seed=N
    --out FOLDER           write there instead of beside FILE
{reading}
    --force                overwrite

    tunerun data split rows.jsonl --eval 0.3"""


def main(argv: Sequence[str]) -> int:
    """Splits.

    Args:
        argv: FILE and the options that the help lists.

    Returns:
        The exit code.

    Raises:
        UserError: An argument is wrong, a target exists, or the file cannot be split.
    """
    if {"--help", "-h"} & set(argv):
        print(_HELP.format(reading=reading_help()))
        return ExitCode.DONE
    options, rest = arguments.split(argv, flags=("--force",), values=("--eval", "--seed", "--out", *READING_OPTIONS))
    path = Path(arguments.one(rest, "one file to split")).expanduser()
    if "--eval" not in options:
        raise UserError("say how many rows are to evaluate on: --eval 0.1, or a number of rows.")
    amount = _amount(options["--eval"][-1])
    seed = _seed(options["--seed"][-1]) if "--seed" in options else 0
    folder = Path(options["--out"][-1]) if "--out" in options else None
    refuse_existing(targets(path, folder), force="--force" in options)
    made = split_file(path, amount, seed, reading(options), folder)
    print(f"rows: {made.form}")
    print(f"{made.train}: {made.train_rows:,} rows to train on")
    print(f"{made.evaluated}: {made.eval_rows:,} rows to evaluate on")
    return ExitCode.DONE


def _amount(text: str) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = 0.0
    if not (0 < amount < 1 or (amount >= 1 and amount.is_integer())):
        raise UserError(f"--eval: {text} is neither a share between 0 and 1 nor a number of rows.")
    return amount


def _seed(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"--seed: {text} is not a whole number.") from error
