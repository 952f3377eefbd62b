import re

import pytest

from tunerun.run.charts import Series, histogram, line_chart, number


def chart(points, **settings):
    return line_chart([Series(label="loss", points=points, style="first", **settings)], title="t", x_label="step")


def places(svg):
    found = re.findall(r'points="([^"]+)"', svg)
    return [[tuple(map(float, pair.split(","))) for pair in line.split()] for line in found]


def test_points_are_drawn_from_left_to_right_inside_the_picture():
    (line,) = places(chart([(1, 3.0), (2, 1.0), (3, 2.0)]))
    assert [x for x, _ in line] == sorted(x for x, _ in line)
    assert all(0 <= x <= 900 and 0 <= y <= 330 for x, y in line)
    assert line[0][1] < line[2][1] < line[1][1]


@pytest.mark.parametrize("points", [[(1, 2.0)], [(1, 0.0), (2, 0.0)], [(5, 2.0), (6, 2.0)], [(1, -1.0), (2, -3.0)]])
def test_few_or_equal_values_can_be_drawn(points):
    assert len(places(chart(points))[0]) == len(points)


def test_a_wide_range_of_losses_gets_a_logarithmic_axis():
    labels = re.findall(r'text-anchor="end">([^<]+)<', chart([(1, 10.0), (2, 1.0), (3, 0.1)], noisy=True))
    assert {"0.1", "1", "10"} <= set(labels)
    first, second, third = (y for _, y in places(chart([(1, 10.0), (2, 1.0), (3, 0.1)], noisy=True))[0])
    assert second - first == pytest.approx(third - second, abs=0.2)


def test_many_noisy_values_get_an_average_with_the_same_ends():
    points = [(step, 1.0 + (step % 2)) for step in range(1, 301)]
    raw, mean = places(chart(points, noisy=True))
    assert (raw[0], raw[-1]) == (mean[0], mean[-1])
    assert max(y for _, y in mean[20:-20]) < max(y for _, y in raw)


def test_labels_are_escaped():
    assert "<b>" not in line_chart([Series(label="<b>", points=[(1, 1.0)], style="first")], title="<b>", x_label="<b>")


def test_a_histogram_has_a_bar_for_each_count():
    svg = histogram([0, 10, 20, 30], [3, 0, 7], title="t", unit="tokens")
    assert svg.count("<rect") == 3
    assert "20 to 30 tokens: 7" in svg


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.01234, "0.0123"), (1.5, "1.5"), (12345.6, "12,346"), (2e-5, "2e-05")]
)
def test_numbers(value, text):
    assert number(value) == text
