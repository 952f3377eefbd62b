"""The sweepers that `hydra/sweeper=` can choose, where Hydra looks for plugins; all they do is in `tunerun.sweep`.

Hydra imports this file whenever it starts, so it imports nothing heavy itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class _TunerunSweeper(Sweeper):
    """Tells the task function, which runs trials until there are no more, where they come from."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Takes what a sweep works with.

        Args:
            hydra_context: Hydra's own.
            task_function: Takes what all trials share and a function that makes a `tunerun.sweep.trials.Source`;
                returns the exit code.
            config: What all trials share, with Hydra's node.
        """
        self.hydra_context, self.config = hydra_context, config
        self._run = partial(cast(Callable[..., Any], task_function), config)


class GridSweeper(_TunerunSweeper):
    """Every point of a grid (`hydra/sweeper=tunerun_grid`)."""

    def sweep(self, arguments: list[str]) -> Any:
        """Runs the grid and returns the exit code.

        Args:
            arguments: The overrides that are not Hydra's own.
        """
        from tunerun.sweep import sources

        return self._run(sources.grid(arguments))


class OptunaSweeper(_TunerunSweeper):
    """A search with Optuna (`hydra/sweeper=tunerun_optuna`)."""

    def __init__(self, **settings: Any) -> None:
        """Takes the keys of `hydra.sweeper`."""
        self._settings = settings

    def sweep(self, arguments: list[str]) -> Any:
        """Runs the search and returns the exit code.

        Args:
            arguments: The overrides that are not Hydra's own.
        """
        from tunerun.sweep import sources

        return self._run(sources.search(arguments, self._settings))
