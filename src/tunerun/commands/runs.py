"""`tunerun runs [FOLDER]`: lists runs, newest first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunerun.commands import arguments
from tunerun.commands.prepare import OUTPUTS
from tunerun.errors import ExitCode, UserError
from tunerun.run import inspect


def main(argv: Sequence[str]) -> int:
    """Prints a table of runs.

    Args:
        argv: The folder to search; ./outputs by default.

    Raises:
        UserError: The folder does not exist.
    """
    _, rest = arguments.split(argv, flags=(), values=())
    if len(rest) > 1:
        raise UserError("name one folder, or none for ./outputs.")
    if not rest and not OUTPUTS.is_dir():
        print("no runs in ./outputs yet. Start one: tunerun +recipe=quickstart")
        return ExitCode.DONE
    print(inspect.list_runs(Path(rest[0]) if rest else OUTPUTS))
    return ExitCode.DONE
