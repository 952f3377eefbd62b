"""The plan of a run: a frozen value that round-trips through JSON; children read it from plan.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunerun.config import typed
from tunerun.plan import steps
from tunerun.plan.estimate import Estimate
from tunerun.plan.steps import Step, TrainStep

SCHEMA = 1


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
    """What it will take; None when the model's shape is unknown."""
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
        "notes": list(plan.notes),
        "warnings": list(plan.warnings),
    }


def from_json(data: Mapping[str, Any]) -> Plan:
    """Builds a plan from plain data.

    Raises:
        ValueError: The data was written by a newer version, or is no plan.
    """
    if data["schema"] > SCHEMA:
        raise ValueError(f"plan.json has schema {data['schema']}; this version reads up to {SCHEMA}")
    estimate = None
    if data["estimate"] is not None:
        estimate, problems = typed.build(Estimate, data["estimate"], "estimate")
        if problems:
            raise ValueError("\n".join(str(problem) for problem in problems))
    return Plan(
        name=data["name"],
        run_dir=data["run_dir"],
        steps=tuple(steps.from_json(step) for step in data["steps"]),
        estimate=estimate,
        notes=tuple(data["notes"]),
        warnings=tuple(data["warnings"]),
    )
