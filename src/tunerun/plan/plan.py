"""The plan of a run: a frozen value that round-trips through JSON; children read it from plan.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tunerun import artifacts
from tunerun.config import typed
from tunerun.plan import steps
from tunerun.plan.estimate import Estimate
from tunerun.plan.steps import Step, TrainStep
from tunerun.plan.verification import Verification

SCHEMA = 2

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Volume:
    """How much is trained on; guessed from the files until the data stage has counted."""

    rows: int | None
    """Rows to train on; None when nothing can be told without a download."""
    optimiser_steps: int | None
    tokens: int | None
    """Over all steps, padding left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a run will do."""

    name: str
    """Of the run."""
    run_dir: str
    """Absolute path."""
    steps: tuple[Step, ...]
    """In order."""
    estimate: Estimate | None
    """What training will take; None without training, or when the model's shape is unknown."""
    volume: Volume | None
    """How much is trained on; None without training."""
    verification: Verification | None
    """What verification will take; None when nothing is verified."""
    notes: tuple[str, ...]
    """What was decided for the user, and why."""
    warnings: tuple[str, ...]
    """What may go wrong."""

    @property
    def train(self) -> TrainStep | None:
        """The training step, when there is one."""
        return next((step for step in self.steps if isinstance(step, TrainStep)), None)


def to_json(plan: Plan) -> dict[str, Any]:
    """Turns a plan into plain data."""
    return {
        "schema": SCHEMA,
        "name": plan.name,
        "run_dir": plan.run_dir,
        "steps": [steps.to_json(step) for step in plan.steps],
        "estimate": typed.plain(plan.estimate),
        "volume": typed.plain(plan.volume),
        "verification": typed.plain(plan.verification),
        "notes": list(plan.notes),
        "warnings": list(plan.warnings),
    }


def read(path: Path) -> Plan:
    """Reads plan.json.

    Raises:
        UserError: It is damaged, or was written by a newer tunerun.
    """
    schema, data = artifacts.read_versioned(path, SCHEMA)
    return from_json({"schema": schema, **data})


def from_json(data: Mapping[str, Any]) -> Plan:
    """Builds a plan from plain data of this version or an older one.

    Raises:
        ValueError: The data are no plan.
    """
    if data["schema"] == 1:
        data = _from_schema_1(data)
    return Plan(
        name=data["name"],
        run_dir=data["run_dir"],
        steps=tuple(steps.from_json(step) for step in data["steps"]),
        estimate=_optional(Estimate, data["estimate"]),
        volume=_optional(Volume, data["volume"]),
        verification=_optional(Verification, data["verification"]),
        notes=tuple(data["notes"]),
        warnings=tuple(data["warnings"]),
    )


def _from_schema_1(data: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out what verification takes, which was counted with training and by its passes only."""
    found = data["estimate"]
    kept = None if found is None else {key: value for key, value in found.items() if not key.startswith("verify_")}
    return {**data, "estimate": kept, "verification": None}


def _optional(cls: type[_T], data: Mapping[str, Any] | None) -> _T | None:
    if data is None:
        return None
    value, problems = typed.build(cls, data, cls.__name__.lower())
    if problems:
        raise ValueError("\n".join(str(problem) for problem in problems))
    return value
