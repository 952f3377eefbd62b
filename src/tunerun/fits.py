"""fitting.json: how much a training computed at a time, from which step on.

There only when memory ran out: the micro-batch that was found is no choice of the plan, but the bits depend on it. A
training that goes on reads it, and a replay takes it over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tunerun import artifacts
from tunerun.errors import Problem, UserError

SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """How much a training computes at a time, from some step on."""

    step: int
    """First optimiser step that is computed so, from 1; 0 is what comes before it."""
    micro_batch_size: int
    """Rows each process computes at a time."""
    activation_checkpointing: bool
    eval_batch_size: int
    """Held-out rows measured, and questions answered, at a time."""


def read(run_dir: Path, key: str | None = None) -> tuple[Fit, ...]:
    """Reads what a training found.

    Args:
        run_dir: The run directory.
        key: Of the training that it has to belong to; null takes any.

    Returns:
        As planned, and then what was found, in order; nothing when there is no file, or that of another training.

    Raises:
        UserError: It is damaged, or was written by a newer tunerun.
    """
    path = run_dir / artifacts.FITTING
    if not path.is_file():
        return ()
    _, data = artifacts.read_versioned(path, SCHEMA)
    try:
        belongs_to, found = data["key"], tuple(Fit(**item) for item in data["fits"])
    except (KeyError, TypeError) as error:
        fix = "Remove it to go on with the micro-batch of the plan."
        raise UserError(Problem(where=str(path), what="is damaged.", fix=fix)) from error
    return found if key in (None, belongs_to) else ()


def write(run_dir: Path, key: str, fits: Sequence[Fit]) -> None:
    """Publishes what a training found.

    Args:
        run_dir: The run directory.
        key: Of the training.
        fits: As planned, and then what was found, in order.
    """
    value = {"schema": SCHEMA, "key": key, "fits": [asdict(fit) for fit in fits]}
    artifacts.write_json(run_dir / artifacts.FITTING, value)
