"""Line charts and histograms as inline SVG. Colours come from the page's style sheet, so that both themes work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 14, 34
_MAX_HOVER_POINTS = 240
_SMOOTH_FROM_POINTS = 60
_LOG_FROM_RATIO = 30.0
_TICKS = 5
# Wider pictures are not made smaller than their texts can be read.
_NARROW_WIDTH = 500

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """A line of a chart."""

    label: str
    points: Sequence[Point]
    style: str
    """Class of its line in the style sheet."""
    noisy: bool = False
    """Whether a moving average is drawn over the values when there are many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frame:
    """Maps values to places in the picture."""

    width: int
    height: int
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    logarithmic: bool

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high, at = self.y_low, self.y_high, value
        if self.logarithmic:
            low, high, at = math.log(low), math.log(high), math.log(value)
        return self.height - _BOTTOM - (at - low) / (high - low) * (self.height - _TOP - _BOTTOM)


def line_chart(series: Sequence[Series], *, title: str, x_label: str, width: int = 900, height: int = 330) -> str:
    """Draws lines over a common axis.

    Noisy values that span a factor of 30 or more, as a loss may, are drawn over a logarithmic axis.

    Args:
        series: At least one, each with at least one point of finite numbers.
        title: For readers that do not see the picture.
        x_label: Name of the horizontal axis.
        width: In picture units; the page scales it.
        height: In picture units.
    """
    frame = _frame(series, width, height)
    parts = [picture_start(width, height, title), *_y_axis(frame), *_x_axis(frame, x_label)]
    for item in series:
        smooth = item.noisy and len(item.points) >= _SMOOTH_FROM_POINTS
        if smooth:
            parts.append(_line(frame, item.points, f"{item.style} raw"))
        parts.append(_line(frame, _smoothed(item.points) if smooth else item.points, item.style))
        parts += _hover(frame, item, x_label)
    return "".join([*parts, "</svg>"])


def histogram(bounds: Sequence[float], counts: Sequence[int], *, title: str, unit: str) -> str:
    """Draws counts between bounds.

    Args:
        bounds: One more than `counts`, growing.
        counts: Of each interval; at least one is not 0.
        title: For readers that do not see the picture.
        unit: Of the bounds.
    """
    width, height = 900, 210
    bar_width = (width - _LEFT - _RIGHT) / len(counts)
    high = _nice_step(max(counts) / 3) * math.ceil(max(counts) / _nice_step(max(counts) / 3))
    frame = _Frame(width=width, height=height, x_low=0, x_high=len(counts), y_low=0, y_high=high, logarithmic=False)
    parts = [picture_start(width, height, title), *_y_axis(frame)]
    for index, ((low, up), count) in enumerate(zip(pairwise(bounds), counts, strict=True)):
        top = frame.y(count)
        parts.append(
            f'<rect class="bar" x="{frame.x(index) + 1:.1f}" y="{top:.1f}" width="{bar_width - 2:.1f}" '
            f'height="{frame.y(0) - top:.1f}"><title>{low:,.0f} to {up:,.0f} {unit}: {count:,}</title></rect>'
        )
    every = max(1, math.ceil(len(bounds) / 9))
    for index in range(0, len(bounds), every):
        parts.append(caption(frame.x(index), height - 16, f"{bounds[index]:,.0f}", "middle"))
    parts.append(caption(width - _RIGHT, height - 2, unit, "end"))
    return "".join([*parts, "</svg>"])


def number(value: float, digits: int = 3) -> str:
    """Writes a number in the digits that matter: `0.0123`, `1.23`, `12,300`, `2e-05`."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def _frame(series: Sequence[Series], width: int, height: int) -> _Frame:
    xs = [x for item in series for x, _ in item.points]
    ys = [y for item in series for _, y in item.points]
    low, high = min(ys), max(ys)
    logarithmic = series[0].noisy and low > 0 and high / low >= _LOG_FROM_RATIO
    if logarithmic:
        low, high = low / 1.1, high * 1.1
    else:
        # Zero is kept in sight when the values come near it.
        low = 0.0 if 0 <= low < 0.4 * high else low
        step = _nice_step((high - low) / _TICKS or abs(high) or 1.0)
        low, high = math.floor(low / step) * step, math.ceil(high / step) * step
        high = high if high > low else low + step
    x_low, x_high = min(xs), max(xs)
    return _Frame(
        width=width,
        height=height,
        x_low=x_low,
        x_high=x_high if x_high > x_low else x_low + 1,
        y_low=low,
        y_high=high,
        logarithmic=logarithmic,
    )


def _nice_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)


def _ticks(low: float, high: float) -> list[float]:
    step = _nice_step((high - low) / _TICKS)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 1000 else (1,)
    return [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]


def _y_axis(frame: _Frame) -> list[str]:
    ticks = (_log_ticks if frame.logarithmic else _ticks)(frame.y_low, frame.y_high)
    parts = []
    for value in ticks:
        at = frame.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{frame.width - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(caption(_LEFT - 8, at + 4, number(value), "end"))
    return parts


def _x_axis(frame: _Frame, label: str) -> list[str]:
    ticks = [value for value in _ticks(frame.x_low, frame.x_high) if value == int(value)]
    parts = [caption(frame.x(value), frame.height - 16, number(value), "middle") for value in ticks]
    return [*parts, caption(frame.width - _RIGHT, frame.height - 2, label, "end")]


def _line(frame: _Frame, points: Sequence[Point], style: str) -> str:
    places = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
    return f'<polyline class="line {style}" points="{places}"/>'


def _hover(frame: _Frame, item: Series, x_label: str) -> list[str]:
    every = max(1, math.ceil(len(item.points) / _MAX_HOVER_POINTS))
    dot = "dot" if len(item.points) < _SMOOTH_FROM_POINTS else "dot hidden"
    return [
        f'<g class="{dot} {item.style}"><circle class="mark" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="2.5"/>'
        f'<circle class="target" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="7">'
        f"<title>{escape(x_label)} {number(x)}: {escape(item.label)} {y:.5g}</title></circle></g>"
        for x, y in list(item.points)[::every]
    ]


def _smoothed(points: Sequence[Point]) -> list[Point]:
    """Returns the mean over about a thirtieth of the points around each; it does not lag behind."""
    reach = max(1, len(points) // 60)
    found = []
    for index, (x, _) in enumerate(points):
        # As many on either side, so that the ends of a falling line are not bent.
        near = min(reach, index, len(points) - 1 - index)
        window = points[index - near : index + near + 1]
        found.append((x, sum(y for _, y in window) / len(window)))
    return found


def panel(picture: str, legend: Sequence[Series] = ()) -> str:
    """Frames a picture, with the names of its lines above it."""
    names = "".join(f'<span class="{item.style}">{escape(item.label)}</span>' for item in legend)
    head = f'<div class="legend">{names}</div>' if names else ""
    return f'<div class="panel">{head}{picture}</div>'


def picture_start(width: int, height: int, title: str) -> str:
    """Returns the opening tag of a picture, whose title is for readers that do not see it."""
    kind = "chart wide" if width > _NARROW_WIDTH else "chart"
    return f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title, quote=True)}">'


def caption(x: float, y: float, text: str, anchor: str) -> str:
    """Returns a text in a picture; `anchor` says which part of it is at `x`: `start`, `middle` or `end`."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
