"""`tunerun runs [FOLDER]`: lists runs."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

from tunerun.commands import arguments
from tunerun.commands.prepare import OUTPUTS
from tunerun.config.typed import nearest
from tunerun.errors import ExitCode, UserError
from tunerun.run import inspect

_Order = Literal["created", "took", "loss"]


def main(argv: Sequence[str]) -> int:
    """Prints a table of runs.

    Args:
        argv: The folder to search (./outputs by default), `--state STATE`, `--like WORD` and `--sort KEY`.

    Raises:
        UserError: The folder does not exist, or there is no such state or order.
    """
    options, rest = arguments.split(argv, flags=(), values=("--state", "--like", "--sort"))
    if len(rest) > 1:
        raise UserError("name one folder, or none for ./outputs.")
    orders = typing.get_args(_Order)
    for option, what, known in (("--state", "state", inspect.STATES), ("--sort", "order", orders)):
        for value in options.get(option, ()):
            if value not in known:
                raise UserError(f"{option}={value}: there is no such {what}. {nearest(value, known)}")
    if not rest and not OUTPUTS.is_dir():
        print("no runs in ./outputs yet. Start one: tunerun +recipe=quickstart")
        return ExitCode.DONE
    choice = inspect.Choice(
        states=tuple(options.get("--state", ())),
        words=tuple(options.get("--like", ())),
        order=cast(_Order, [orders[0], *options.get("--sort", ())][-1]),
    )
    print(inspect.list_runs(Path(rest[0]) if rest else OUTPUTS, choice))
    return ExitCode.DONE
