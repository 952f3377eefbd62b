"""Where trials lie in the picture of a sweep."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from tunerun.sweep import plots

SVG_TOP, SVG_BOTTOM = 34.0, 276.0


def heights(svg: str, axis: int) -> list[float]:
    """Where each line crosses an axis, from the best one."""
    found = [re.findall(r"[\d.]+,([\d.]+)", line)[axis] for line in re.findall(r'points="([^"]+)"', svg)]
    return [float(height) for height in reversed(found)]


def test_numbers_lie_by_value_and_the_largest_is_on_top():
    svg = plots.parallel([({"rank": "8"}, 1.0), ({"rank": "4"}, 2.0), ({"rank": "12"}, 3.0)], "eval_loss")
    assert heights(svg, 0) == pytest.approx([(SVG_TOP + SVG_BOTTOM) / 2, SVG_BOTTOM, SVG_TOP])
    assert heights(svg, 1) == pytest.approx([SVG_BOTTOM, (SVG_TOP + SVG_BOTTOM) / 2, SVG_TOP])


def test_learning_rates_lie_by_their_power():
    lines = [({"lr": text}, 1.0) for text in ("1e-2", "1e-3", "1e-4")]
    assert heights(plots.parallel(lines, "loss"), 0) == pytest.approx([SVG_TOP, (SVG_TOP + SVG_BOTTOM) / 2, SVG_BOTTOM])


def test_words_lie_in_order_of_their_first_trial():
    lines = [({"method": "lora"}, 1.0), ({"method": "full"}, 2.0), ({"method": "lora"}, 3.0)]
    assert heights(plots.parallel(lines, "loss"), 0) == [SVG_BOTTOM, SVG_TOP, SVG_BOTTOM]


@pytest.mark.parametrize("lines", [[({}, 1.0)], [({"a": "1"}, 2.0), ({"b": "<&>"}, 2.0)]])
def test_few_trials_and_odd_values_make_a_sound_picture(lines):
    root = ElementTree.fromstring(plots.parallel(lines, "loss"))
    assert len(root.findall("polyline")) == len(lines)


@pytest.mark.parametrize(("better", "best"), [("lower", "1"), ("higher", "3")])
def test_the_best_so_far_never_gets_worse(better, best):
    svg = plots.history([(0.0, 2.0), (1.0, 3.0), (2.0, 1.0), (3.0, 2.0)], "loss", better)
    assert f"trial 3: best so far {best}<" in svg


def test_the_ends_of_an_axis_are_labelled_before_what_lies_close_to_them():
    lines = [({"rank": "4"}, 2.83), ({"rank": "8"}, 4.17), ({"rank": "8"}, 4.23)]
    svg = plots.parallel(lines, "loss")
    assert ">4.23</text>" in svg and ">2.83</text>" in svg
    assert ">4.17</text>" not in svg
