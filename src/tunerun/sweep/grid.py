"""Every point of a grid, in order: what `tunerun -m` runs unless another sweeper is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from tunerun.config.schema import OptunaConfig
from tunerun.errors import Problem, UserError
from tunerun.sweep.importance import Importances, variance_shares
from tunerun.sweep.space import Axis
from tunerun.sweep.trials import Outcome, Trial


class Grid:
    """The points of a grid, the last axis fastest."""

    def __init__(self, axes: Sequence[Axis], fixed: Sequence[str]) -> None:
        """Spells the points out.

        Args:
            axes: What is varied.
            fixed: Overrides that all points share.

        Raises:
            UserError: An axis cannot be counted.
        """
        fix = "Write key=a,b,c or key=range(1,4), give it a step, or search: hydra/sweeper=tunerun_optuna."
        problems = [
            Problem(where=axis.key, what="a grid needs values it can count.", fix=fix)
            for axis in axes
            if not axis.points
        ]
        if problems:
            raise UserError(problems)
        points = product(*([f"{axis.key}={point}" for point in axis.points] for axis in axes))
        self.trials = [
            Trial(number=number, point=(*fixed, *varied), varied=varied) for number, varied in enumerate(points)
        ]
        self.axes, self.fixed = axes, fixed
        self.settings: OptunaConfig | None = None
        self._waiting = iter(self.trials)
        self.total = len(self.trials)
        self.is_complete, self.prunes = True, False

    def samples(self) -> list[Trial]:
        """Returns all points."""
        return self.trials

    def start(self, *, create: bool = True) -> None:
        """Needs nothing."""

    def next(self) -> Trial | None:
        """Returns the next point."""
        return next(self._waiting, None)

    def goes_on(self, trial: Trial, evals: int, loss: float) -> bool:  # noqa: ARG002 (the protocol's signature)
        """Returns True: every point is of interest."""
        return True

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        """Learns nothing."""

    def known(self) -> list[Outcome]:
        """Returns nothing: the trials' directories say it all."""
        return []

    def find(self, number: int) -> Trial | None:
        """Returns a point by its number."""
        return self.trials[number]

    def importances(self, rows: Sequence[Outcome], metric: str) -> Importances:
        """Returns which share of the metric's variance goes with each key."""
        return variance_shares(rows, metric)
