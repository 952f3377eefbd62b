"""Errors that users meet, and the exit codes they end in.

    TunerunError            message, no traceback
    |-- UserError           the config or the data is wrong                     exit 2
    |-- StageError          a stage could not do its work                       exit 1
    |   |-- MissingExtra    an optional dependency is not installed             exit 1
    |   |-- FailedElsewhere another rank of the stage failed                    exit 1
    |   `-- TryAgain        it will do better when it is started again          exit 1
    |-- GateError           a verify gate failed                                exit 3
    |-- Pruned              a sweep ended the trial early                       exit 4
    `-- Preempted           stopped by a signal; the run can be resumed         exit 75

Standard library only, so that everything may import it.
"""

from __future__ import annotations

import enum
import errno
import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType


class ExitCode(enum.IntEnum):
    """How a tunerun process ends."""

    DONE = 0
    STAGE_FAILED = 1
    USER_ERROR = 2
    GATE_FAILED = 3
    PRUNED = 4
    PREEMPTED = 75


class TunerunError(Exception):
    """Shown to the user as it is, without a traceback."""

    exit_code = ExitCode.STAGE_FAILED


class StageError(TunerunError):
    """A stage could not do its work for a reason outside the config."""


class FailedElsewhere(StageError):  # noqa: N818 (what another rank raised)
    """Another rank of the stage failed, and has said how."""


class TryAgain(StageError):  # noqa: N818 (a request to the runner)
    """The stage wrote down what it found out, and will do better when it is started again."""


class GateError(TunerunError):
    """A verify gate measured something outside its bound."""

    exit_code = ExitCode.GATE_FAILED


class Pruned(TunerunError):  # noqa: N818 (a state, not a fault)
    """The sweep that a trial belongs to sees no use in going on with it; the command itself never ends so."""

    exit_code = ExitCode.PRUNED


class Preempted(TunerunError):  # noqa: N818 (a state, not a fault)
    """A signal stopped the work at a point it can be resumed from."""

    exit_code = ExitCode.PREEMPTED


class MissingExtra(StageError):  # noqa: N818
    """An optional dependency is not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"{module} is not installed. Install it with: pip install 'tunerun[{extra}]'")


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing the user has to mend: where it is, what is wrong, and how to fix it."""

    where: str
    """A config key (`method.rank`), a file, or a file with its line (`train.jsonl:17`)."""
    what: str
    """What is wrong and why, as one sentence."""
    fix: str = ""
    """What to write or do instead; empty when `what` leaves only one thing to do."""
    source: str = ""
    """Where the value came from: the command line, or a recipe or option file."""

    def __str__(self) -> str:
        origin = f" ({self.source})" if self.source else ""
        fix = f" {self.fix}" if self.fix else ""
        return f"{self.where}{origin}: {self.what}{fix}"


class UserError(TunerunError):
    """The user's config or data is wrong; carries every problem found."""

    exit_code = ExitCode.USER_ERROR

    def __init__(self, problems: Iterable[Problem] | Problem | str) -> None:
        if isinstance(problems, str):
            self.problems: tuple[Problem, ...] = ()
            super().__init__(problems)
            return
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        assert self.problems, "a UserError needs a problem"
        super().__init__("\n".join(str(problem) for problem in self.problems))


_OUT_OF_SPACE = {
    errno.ENOSPC: "the disk is full. Free some space.",
    errno.EDQUOT: "the disk quota is used up. Free some space.",
    errno.EFBIG: "a file would be larger than the shell allows. Raise `ulimit -f`.",
}


def system_fault(error: OSError) -> str:
    """Says what the system refused, and what to do where a file cannot grow."""
    return f"{_OUT_OF_SPACE[error.errno]} ({error})" if error.errno in _OUT_OF_SPACE else str(error)


def require(module: str, extra: str) -> ModuleType:
    """Imports an optional dependency.

    Args:
        module: Import name, such as `llama_cpp`.
        extra: The extra of tunerun that installs it.

    Raises:
        MissingExtra: The module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtra(module, extra) from error
