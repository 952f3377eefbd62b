"""What the tests of broken files share."""

from __future__ import annotations

from pathlib import Path

from tunerun.data.read import read_rows
from tunerun.data.rows import BadRow
from tunerun.errors import UserError


def first_fault(path: Path) -> tuple[str, str] | None:
    """Returns where and what the first fault of a file is, or None when all of it was read."""
    try:
        for row in read_rows(path):
            if isinstance(row, BadRow):
                return f"{row.file}:{row.line}", row.detail
    except UserError as error:
        (problem,) = error.problems
        return problem.where, f"{problem.what} {problem.fix}"
    return None
