"""How much each varied key matters to a metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from tunerun.sweep.trials import Outcome

LEAST_TRIALS = 4
"""With fewer, one trial decides what a key seems to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Importances:
    """The shares of keys, or why there are none; neither when fewer than two keys are varied."""

    shares: Mapping[str, float] = field(default_factory=dict)
    """From 0 to 1, by key."""
    method: str = ""
    """What a share means."""
    lack: str = ""
    """Why nothing can be told."""

    @property
    def text(self) -> str:
        """Lists the shares in a line, the most important key first; empty when there are none."""
        order = sorted(self.shares.items(), key=lambda item: -item[1])
        shares = ", ".join(f"{key} {share:.0%}" for key, share in order)
        return f"{shares} ({self.method})" if shares else ""


def too_few(trials: int) -> str:
    """Says that so many trials with the metric are too few; empty when they are not."""
    if trials >= LEAST_TRIALS:
        return ""
    return f"only {trials} trial{'s have' if trials != 1 else ' has'} it, and {LEAST_TRIALS} are needed"


def variance_shares(rows: Sequence[Outcome], metric: str) -> Importances:
    """Returns which share of a metric's variance goes with the value of each key, in a grid.

    It is eta squared of a one-way analysis of variance (Fisher 1925): the sum of squares between the values of a key,
    over the whole sum of squares. What is left of 1 are keys that matter only together, and chance. In a whole grid the
    keys are independent, so that it is exact; where trials failed, keys may share what one of them does.

    Args:
        rows: Trials that ended well.
        metric: Of which those without it are left out.
    """
    measured = [row for row in rows if metric in row.metrics]
    keys = list(dict.fromkeys(key for row in rows for key in row.parameters))
    # That nothing was measured is said already, where the best trial would be.
    if len(keys) < 2 or not measured:
        return Importances()
    if lack := too_few(len(measured)):
        return Importances(lack=lack)
    values = [row.metrics[metric] for row in measured]
    groups = {key: _groups(measured, key, metric) for key in keys}
    for key, parts in groups.items():
        if len(parts) == len(measured):
            return Importances(lack=f"each trial that has it has a {key} of its own")
    mean = fmean(values)
    total = sum((value - mean) ** 2 for value in values)
    if total == 0:
        return Importances(lack="all trials have the same")
    between = {key: sum(len(part) * (fmean(part) - mean) ** 2 for part in parts) for key, parts in groups.items()}
    return Importances(
        shares={key: min(found / total, 1.0) for key, found in between.items()},
        method=f"share of the variance between {len(measured)} trials",
    )


def _groups(rows: Sequence[Outcome], key: str, metric: str) -> list[list[float]]:
    """Returns the measures of the trials with each value of a key."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row.parameters[key], []).append(row.metrics[metric])
    return list(found.values())
