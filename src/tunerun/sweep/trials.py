"""The trials of a sweep, told apart by their overrides, each with a directory of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunerun import artifacts
from tunerun.errors import Problem, UserError

_SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One point of a grid."""

    number: int
    """From 0; also the name of its directory."""
    point: tuple[str, ...]
    """All overrides."""
    varied: tuple[str, ...]
    """Those that are not the same in every trial, as `key=value`."""

    @property
    def digest(self) -> str:
        """Tells the trial from others whatever its number."""
        return hashlib.sha256(json.dumps(sorted(self.point)).encode()).hexdigest()[:16]

    @property
    def parameters(self) -> dict[str, str]:
        """Value by varied key."""
        pairs = (item.partition("=") for item in self.varied)
        return {key.lstrip("+"): value for key, _, value in pairs}


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of one trial."""

    trial: int
    parameters: Mapping[str, str]
    """Value by varied key."""
    status: str
    """As `tunerun runs` shows it, or `waiting`."""
    exit_code: int | None
    seconds: float
    metrics: Mapping[str, float]


def write(sweep_dir: Path, arguments: Sequence[str], trials: Sequence[Trial]) -> None:
    """Writes what was asked for, so that the sweep can be resumed."""
    listed = [{"trial": trial.number, "digest": trial.digest, "overrides": trial.varied} for trial in trials]
    facts = {"schema": _SCHEMA, "directory": str(Path.cwd()), "arguments": list(arguments), "trials": listed}
    artifacts.write_json(sweep_dir / artifacts.SWEEP, facts)


def begun(sweep_dir: Path) -> bool:
    """Says whether a trial of the sweep has a directory."""
    return any(path.name.isdecimal() and path.is_dir() for path in sweep_dir.iterdir())


def read(sweep_dir: Path) -> tuple[list[str], dict[str, int]]:
    """Reads what a sweep was asked for.

    Returns:
        The arguments as typed, and each trial's number by its digest.

    Raises:
        UserError: The folder is no sweep, or a damaged one, or of a newer tunerun, or was started in another folder.
    """
    if not artifacts.is_sweep(sweep_dir):
        what = f"is not the directory of a sweep: no {artifacts.SWEEP}."
        fix = "A sweep is started by tunerun -m +recipe=NAME key=a,b."
        raise UserError(Problem(where=str(sweep_dir), what=what, fix=fix))
    _, data = artifacts.read_versioned(sweep_dir / artifacts.SWEEP, _SCHEMA)
    if data["directory"] != str(Path.cwd()):
        what = f"was started in {data['directory']}, where its recipes and data are found."
        raise UserError(Problem(where=str(sweep_dir), what=what, fix="Go there to resume it."))
    return data["arguments"], {trial["digest"]: trial["trial"] for trial in data["trials"]}
