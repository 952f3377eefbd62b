"""`tunerun recipes`: lists the user's recipes and the shipped ones."""

from __future__ import annotations

from collections.abc import Sequence

from tunerun import columns, paths
from tunerun.columns import MAX_COLUMNS
from tunerun.commands import arguments
from tunerun.config.reference import head_comment
from tunerun.errors import ExitCode, UserError


def main(argv: Sequence[str]) -> int:
    """Prints one recipe a line with its first comment.

    Raises:
        UserError: Arguments were given.
    """
    _, rest = arguments.split(argv, flags=(), values=())
    if rest:
        raise UserError("recipes takes no arguments. To see one: tunerun +recipe=NAME --cfg job")
    seen: set[str] = set()
    for folder in (*paths.user_folders("recipes"), paths.shipped("recipes")):
        for file in sorted(folder.glob("*.yaml")):
            if file.is_file() and file.stem not in seen:
                seen.add(file.stem)
                name = columns.pad(file.stem, 26)
                print("\n".join(columns.fill(head_comment(file), MAX_COLUMNS, first=name, rest=" " * 26)))
    return ExitCode.DONE
