"""`tunerun diff RUN RUN`: what differs between two runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunerun.commands import arguments
from tunerun.errors import ExitCode, UserError
from tunerun.run import compare, results
from tunerun.run.summary import short


def main(argv: Sequence[str]) -> int:
    """Prints config, data, environment, metrics and artifacts side by side where they differ.

    Args:
        argv: Two run directories.

    Raises:
        UserError: One of them is not a run.
    """
    _, rest = arguments.split(argv, flags=(), values=())
    if len(rest) != 2:
        raise UserError("name two run directories: tunerun diff outputs/a/RUN outputs/a/RUN")
    first, second = (Path(item) for item in rest)
    found = compare.differences(results.read(first), results.read(second))
    print(compare.render(found, (short(first.absolute()), short(second.absolute()))))
    return ExitCode.DONE
