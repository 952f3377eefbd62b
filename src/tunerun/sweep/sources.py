"""What decides which trials a sweep has, and what makes it, as Hydra's sweeper asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tunerun.config import typed
from tunerun.config.resolve import group_names
from tunerun.config.schema import OptunaConfig, SweepConfig
from tunerun.errors import UserError, require
from tunerun.sweep import space
from tunerun.sweep.grid import Grid
from tunerun.sweep.importance import Importances
from tunerun.sweep.space import Axis
from tunerun.sweep.trials import Outcome, Trial


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """What a sweep is known to be before its trials are."""

    sweep_dir: Path
    config_dir: Path | None
    """A further folder of configs."""
    sweep: SweepConfig
    seed: int


class Source(Protocol):
    """Decides which trials a sweep has; asked by one thread only, but for `goes_on`."""

    axes: Sequence[Axis]
    """What is varied."""
    fixed: Sequence[str]
    """Overrides that all trials share."""
    settings: OptunaConfig | None
    """How it searches, if it does."""
    total: int
    """Number of trials."""
    is_complete: bool
    """Whether `samples` are all trials there will be."""
    prunes: bool
    """Whether `goes_on` may say no."""

    def samples(self) -> list[Trial]:
        """Returns points that are composed and checked before anything is written."""

    def start(self, *, create: bool = True) -> None:
        """Opens what is needed to go on, which with `create` is made where it is not there."""

    def next(self) -> Trial | None:
        """Returns a trial to run, or None when there is none."""

    def goes_on(self, trial: Trial, evals: int, loss: float) -> bool:
        """Says whether a trial is worth going on with after its `evals`-th measurement of the held-out loss."""

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        """Learns what came of a trial."""

    def known(self) -> list[Outcome]:
        """Returns what is remembered of trials, those of other processes in the same search included."""

    def find(self, number: int) -> Trial | None:
        """Returns a trial of this sweep, or None when it is another process's."""

    def importances(self, rows: Sequence[Outcome], metric: str) -> Importances:
        """Returns how much each key matters to the first metric, as far as that is known."""


MakeSource = Callable[[Base], Source]


def grid(arguments: Sequence[str]) -> MakeSource:
    """Returns what makes a grid of the axes among the arguments and in `sweep.params`."""

    def make(base: Base) -> Source:
        axes, fixed = _axes(arguments, base)
        return Grid(axes, fixed)

    return make


def search(arguments: Sequence[str], settings: Mapping[str, Any]) -> MakeSource:
    """Returns what opens a search with Optuna.

    Args:
        arguments: Overrides, axes among them.
        settings: Keys of `hydra.sweeper`.
    """

    def make(base: Base) -> Source:
        chosen = optuna_config(settings)
        axes, fixed = _axes(arguments, base)
        require("optuna", "sweep")
        from tunerun.sweep.search import Asked, Search

        asked = Asked(
            axes=tuple(axes),
            fixed=tuple(fixed),
            metrics=base.sweep.metric,
            trials=base.sweep.trials,
            seed=base.seed,
        )
        return Search(asked, chosen, base.sweep_dir)

    return make


def optuna_config(settings: Mapping[str, Any]) -> OptunaConfig:
    """Builds the settings of a search from the keys of `hydra.sweeper`.

    Raises:
        UserError: A key or a value is wrong; carries every problem.
    """
    config, problems = typed.build(OptunaConfig, settings, "hydra.sweeper")
    if problems:
        raise UserError(problems)
    assert config is not None, "every key has a default"
    return config


def _axes(arguments: Sequence[str], base: Base) -> tuple[list[space.Axis], list[str]]:
    groups = group_names()
    # Hydra has them in the form that they were given to it.
    typed_again = [item.removeprefix("++") for item in arguments]
    axes = space.read(typed_again, base.sweep.params, groups, base.config_dir)
    return axes, space.fixed(typed_again, groups)
