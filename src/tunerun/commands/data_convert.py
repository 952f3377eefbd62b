"""`tunerun data convert IN OUT`: writes rows of any format as OpenAI messages, in JSON lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from tunerun.commands import arguments
from tunerun.config.schema import DATA_PARTS, DataFormat
from tunerun.data import read
from tunerun.data.convert import Reading, convert
from tunerun.errors import ExitCode, Problem, UserError

READING_OPTIONS = ("--format", "--sheet", "--columns")
"""How rows are read, for every verb that reads a file without a config."""

READING_HELP = """\
    --format FORMAT        how rows are read: {formats} (default: auto)
    --sheet NAME           sheet of a workbook
    --columns PART=COLUMN,PART=COLUMN
                           column of each part, by name or in a workbook by letter;
                           parts: {parts}"""

_HELP = """\
tunerun data convert IN OUT [options]
  Writes the rows of IN, a file, a folder or a data set on a hub in any format that can be trained
  on, as OUT, one JSON object a line:
    {{"messages": [...]}} with its "tools"; {{"text": ...}} for documents; "chosen" and "rejected" beside
    the messages of pairs; "label" beside labelled ones
  data.path=OUT trains on the same rows as data.path=IN.

{reading}
    --on-bad-rows fail|drop  whether a malformed row is an error or left out (default: fail)
    --force                overwrite OUT

    tunerun data convert drugs.xlsx rows.jsonl --sheet DrugQA --columns user=A,assistant=D"""


def main(argv: Sequence[str]) -> int:
    """Converts.

    Args:
        argv: IN, OUT and the options that the help lists.

    Returns:
        The exit code.

    Raises:
        UserError: An argument is wrong, OUT exists, or rows cannot be used.
    """
    if {"--help", "-h"} & set(argv):
        print(_HELP.format(reading=reading_help()))
        return ExitCode.DONE
    options, rest = arguments.split(argv, flags=("--force",), values=(*READING_OPTIONS, "--on-bad-rows"))
    if len(rest) != 2:
        raise UserError("name what to read and the file to write: tunerun data convert rows.xlsx rows.jsonl")
    source, target = rest[0], Path(rest[1])
    policy = options["--on-bad-rows"][-1] if "--on-bad-rows" in options else "fail"
    if policy not in ("fail", "drop"):
        raise UserError(f"--on-bad-rows: {policy} is neither fail nor drop.")
    if target.suffix != ".jsonl":
        raise UserError(Problem(where=str(target), what="is not named .jsonl.", fix=f"Write {target.stem}.jsonl."))
    refuse_existing([target], force="--force" in options)
    found = convert(read.find_files([source], "IN"), target, reading(options), drop=policy == "drop")
    print(f"{target}: {found.rows:,} rows ({'; '.join(found.formats)})")
    if found.dropped:
        print(f"{found.dropped:,} rows could not be used and are left out")
    return ExitCode.DONE


def reading(options: Mapping[str, Sequence[str]]) -> Reading:
    """Returns how rows are read, from `READING_OPTIONS`.

    Raises:
        UserError: A value is not of its option's form.
    """
    form = options["--format"][-1] if "--format" in options else "auto"
    if form not in get_args(DataFormat):
        raise UserError(f"--format: there is no {form}. Known: {', '.join(get_args(DataFormat))}.")
    columns: dict[str, str] = {}
    for item in ",".join(options.get("--columns", ())).split(","):
        part, equals, column = (text.strip() for text in item.partition("="))
        if item and (part not in DATA_PARTS or not equals or not column):
            raise UserError(f"--columns: {item} is not PART=COLUMN. Parts: {', '.join(DATA_PARTS)}.")
        if item:
            columns[part] = column
    return Reading(format=form, sheet=options["--sheet"][-1] if "--sheet" in options else None, columns=columns)


def reading_help() -> str:
    """Returns the lines of a help text on `READING_OPTIONS`."""
    formats, parts = ", ".join(get_args(DataFormat)), ", ".join(DATA_PARTS)
    return READING_HELP.format(formats=formats, parts=parts)


def refuse_existing(files: Sequence[Path], *, force: bool) -> None:
    """Refuses to overwrite.

    Raises:
        UserError: A file exists, and overwriting was not asked for; or a folder is in the way.
    """
    found = [Problem(where=str(file), what="is a folder.") for file in files if file.is_dir()]
    if not force:
        fix = "Name another file, or overwrite it by --force."
        found += [Problem(where=str(file), what="exists already.", fix=fix) for file in files if file.is_file()]
    if found:
        raise UserError(found)
