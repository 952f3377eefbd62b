"""A sweep as a file for `wandb sweep`, whose agents then run tunerun."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from tunerun.config.schema import OptunaConfig, SweepConfig
from tunerun.errors import Problem, UserError
from tunerun.sweep import measures
from tunerun.sweep.space import Axis

KEYS = "https://docs.wandb.ai/guides/sweeps/sweep-config-keys"
"""Describes the keys of such a file."""

# What is logged while training, under the names that the tracker gives them.
_LOGGED = {"eval_loss": "train/eval_loss", "train_loss": "train/loss", "tokens_per_second": "train/tokens_per_second"}
_METHODS = {"tpe": "bayes", "cmaes": "bayes", "random": "random", "grid": "grid"}


def render(axes: Sequence[Axis], fixed: Sequence[str], sweep: SweepConfig, search: OptunaConfig | None) -> str:
    """Returns the YAML of a sweep, with the keys of `KEYS`.

    Args:
        axes: What is varied.
        fixed: Overrides that all trials share.
        sweep: The metric, and how many trials there are.
        search: How to search; None makes a grid.

    Raises:
        UserError: There is no axis, or the metric is not known while training.
    """
    problems = [
        Problem(where="sweep.metric", what=f"{name} is not logged while training.", fix=f"Choose of: {list(_LOGGED)}.")
        for name in sweep.metric[:1]
        if name not in _LOGGED
    ]
    if not axes:
        problems.append(Problem(where="sweep.params", what="nothing is varied.", fix="Write key=a,b."))
    method = "grid" if search is None else _METHODS[search.sampler]
    if method == "grid":
        problems += [
            Problem(where=axis.key, what="a grid needs values it can count.") for axis in axes if not axis.points
        ]
    if problems:
        raise UserError(problems)
    first = sweep.metric[0]
    data: dict[str, Any] = {
        "program": "tunerun",
        "method": method,
        "metric": {"name": _LOGGED[first], "goal": "minimize" if measures.better(first) == "lower" else "maximize"},
        "parameters": {axis.key: _parameter(axis, countable=method == "grid") for axis in axes},
        "command": ["${env}", "tunerun", *fixed, "track.wandb=true", "${args_no_hyphens}"],
    }
    if method != "grid":
        data["run_cap"] = sweep.trials
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def _parameter(axis: Axis, *, countable: bool) -> dict[str, Any]:
    if axis.low is None or axis.high is None or countable:
        return {"values": [yaml.safe_load(point) if _is_number(point) else point for point in axis.points]}
    low, high = (int(axis.low), int(axis.high)) if axis.integer else (axis.low, axis.high)
    if axis.log:
        return {"distribution": "log_uniform_values", "min": low, "max": high}
    if axis.step is not None:
        quantum = int(axis.step) if axis.integer else axis.step
        return {"distribution": "q_uniform", "min": low, "max": high, "q": quantum}
    return {"distribution": "int_uniform" if axis.integer else "uniform", "min": low, "max": high}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
