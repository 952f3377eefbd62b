"""The trials of a sweep: points of a grid, told apart by their overrides, each with a directory of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunerun import artifacts
from tunerun.config.resolve import group_names
from tunerun.errors import Problem, UserError
from tunerun.sweep.grid import expand

SWEEP = "sweep.json"
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


def grid_trials(arguments: Sequence[str], config_dir: Path | None = None) -> list[Trial]:
    """Returns the trials of a grid, in the order of the arguments, the last one fastest.

    Args:
        arguments: Overrides as typed; `key=a,b` is an axis.
        config_dir: A further folder of configs.

    Raises:
        UserError: An override cannot be read, or an axis has no values.
    """
    return [
        Trial(number=number, point=tuple(point), varied=tuple(item for item in point if item not in arguments))
        for number, point in enumerate(expand(arguments, group_names(), config_dir))
    ]


def write(sweep_dir: Path, arguments: Sequence[str], trials: Sequence[Trial]) -> None:
    """Writes what was asked for, so that the sweep can be resumed."""
    listed = [{"trial": trial.number, "digest": trial.digest, "overrides": trial.varied} for trial in trials]
    facts = {"schema": _SCHEMA, "directory": str(Path.cwd()), "arguments": list(arguments), "trials": listed}
    artifacts.write_json(sweep_dir / SWEEP, facts)


def is_sweep(folder: Path) -> bool:
    """Says whether a folder is that of a sweep."""
    return (folder / SWEEP).is_file()


def read(sweep_dir: Path) -> tuple[list[str], dict[str, int]]:
    """Reads what a sweep was asked for.

    Returns:
        The arguments as typed, and each trial's number by its digest.

    Raises:
        UserError: The folder is no sweep, or one of another tunerun, or it was started in another folder.
    """
    if not is_sweep(sweep_dir):
        fix = "A sweep is started by tunerun -m +recipe=NAME key=a,b."
        raise UserError(Problem(where=str(sweep_dir), what=f"is not the directory of a sweep: no {SWEEP}.", fix=fix))
    data = artifacts.read_json(sweep_dir / SWEEP)
    if data["schema"] != _SCHEMA:
        what = f"was written by another tunerun (schema {data['schema']}, this one reads {_SCHEMA})."
        raise UserError(Problem(where=str(sweep_dir / SWEEP), what=what))
    if data["directory"] != str(Path.cwd()):
        what = f"was started in {data['directory']}, where its recipes and data are found."
        raise UserError(Problem(where=str(sweep_dir), what=what, fix="Go there to resume it."))
    return data["arguments"], {trial["digest"]: trial["trial"] for trial in data["trials"]}
