"""`tunerun show RUN`: what a run did and made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunerun.commands import arguments
from tunerun.errors import ExitCode
from tunerun.run import inspect


def main(argv: Sequence[str]) -> int:
    """Prints a run's stages, results and artifacts.

    Args:
        argv: The run directory.

    Raises:
        UserError: It is not a run.
    """
    _, rest = arguments.split(argv, flags=(), values=())
    print(inspect.show(Path(arguments.one(rest, "the directory of a run"))))
    return ExitCode.DONE
