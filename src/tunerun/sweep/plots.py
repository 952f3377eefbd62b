"""Plots of a sweep as inline SVG; colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from tunerun.run.charts import Point, Series, caption, line_chart, number, panel, picture_start
from tunerun.sweep.measures import Better

_WIDTH, _HEIGHT = 900, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 70, 34, 24
# Values that span more than this are spread over a logarithmic axis, as learning rates are.
_LOG_FROM_RATIO = 20.0
_MAX_TICKS = 6
# Nearer texts would lie on each other.
_TICK_GAP = 0.06

Line = tuple[Mapping[str, str], float]
"""Parameters of a trial and its measure."""


def history(points: Sequence[Point], metric: str, better: Better) -> str:
    """Draws a measure over the trials, and the best one so far, in a panel with a legend.

    Args:
        points: Trial number and measure, in order of trial.
        metric: Name of the measure.
        better: Which end of it is the good one.
    """
    pick: Callable[[float, float], float] = min if better == "lower" else max
    so_far: list[Point] = []
    for trial, value in points:
        so_far.append((trial, pick(value, so_far[-1][1]) if so_far else value))
    lines = [
        Series(label=metric, points=points, style="first"),
        Series(label="best so far", points=so_far, style="second"),
    ]
    return panel(line_chart(lines, title=f"{metric} by trial", x_label="trial"), legend=lines)


def parallel(lines: Sequence[Line], metric: str) -> str:
    """Draws each trial as a line over an axis for each parameter and one for the measure; the first line is the best.

    Args:
        lines: Of the trials, the best first.
        metric: Name of the measure.
    """
    names = list(dict.fromkeys(key for parameters, _ in lines for key in parameters))
    axes = [_axis([parameters.get(name, "") for parameters, _ in lines]) for name in names]
    axes.append(_axis([repr(value) for _, value in lines]))
    gap = (_WIDTH - _LEFT - _RIGHT) / max(len(axes) - 1, 1)
    parts = [picture_start(_WIDTH, _HEIGHT, f"parameters and {metric}")]
    # The best is drawn last, over the others.
    for index in range(len(lines) - 1, -1, -1):
        places = " ".join(f"{_LEFT + gap * at:.1f},{_y(axis.places[index]):.1f}" for at, axis in enumerate(axes))
        style = "first" if index == 0 else "second raw"
        parameters, value = lines[index]
        label = ", ".join([*(f"{key}={text}" for key, text in parameters.items()), f"{metric} {value:.5g}"])
        parts.append(f'<polyline class="line {style}" points="{places}"><title>{escape(label)}</title></polyline>')
    for at, (name, axis) in enumerate(zip([*names, metric], axes, strict=True)):
        x = _LEFT + gap * at
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        parts.append(caption(x, 14, name.rpartition(".")[2], "middle"))
        parts += [caption(x, _y(place) - 4, text, "middle") for text, place in axis.ticks]
    return "".join([*parts, "</svg>"])


def importances(shares: Mapping[str, float]) -> str:
    """Draws how much each key matters, the most important on top.

    Args:
        shares: From 0 to 1, by key.
    """
    order = sorted(shares.items(), key=lambda item: -item[1])
    room, left = 26, 260
    parts = [picture_start(_WIDTH, room * len(order) + 8, "importance of each key")]
    for row, (key, share) in enumerate(order):
        y = 4 + room * row
        width = max(share, 0.0) * (_WIDTH - left - 60)
        parts.append(caption(left - 8, y + 16, key, "end"))
        parts.append(
            f'<rect class="bar" x="{left}" y="{y + 3}" width="{width:.1f}" height="{room - 8}">'
            f"<title>{escape(key)}: {share:.0%}</title></rect>"
        )
        parts.append(caption(left + width + 6, y + 16, f"{share:.0%}", "start"))
    return "".join([*parts, "</svg>"])


@dataclass(frozen=True, slots=True)
class _Axis:
    """Where the values of one parameter lie, from 0 to 1."""

    places: tuple[float, ...]
    """Of each trial."""
    ticks: tuple[tuple[str, float], ...]
    """Texts and their places."""


def _axis(texts: Sequence[str]) -> _Axis:
    """Places numbers by value, other texts in order of their first trial."""
    values = [_number(text) for text in texts]
    known = [value for value in values if value is not None]
    if len(known) == len(texts):
        low, high = min(known), max(known)
        scale = math.log if low > 0 and high / low >= _LOG_FROM_RATIO else float
        span = scale(high) - scale(low)
        places = [(scale(value) - scale(low)) / span if span else 0.5 for value in known]
    else:
        different = list(dict.fromkeys(texts))
        places = [different.index(text) / max(len(different) - 1, 1) for text in texts]
    shown = sorted(dict(zip(texts, places, strict=True)).items(), key=lambda item: item[1])
    kept, last = shown[:1], shown[-1]
    for text, place in shown[1:-1] if len(shown) <= _MAX_TICKS else ():
        if place - kept[-1][1] >= _TICK_GAP and last[1] - place >= _TICK_GAP:
            kept.append((text, place))
    kept += shown[1:][-1:]
    return _Axis(tuple(places), tuple((_tick(text), place) for text, place in kept))


def _tick(text: str) -> str:
    value = _number(text)
    return text if value is None else number(value)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _y(place: float) -> float:
    return _HEIGHT - _BOTTOM - place * (_HEIGHT - _TOP - _BOTTOM)
