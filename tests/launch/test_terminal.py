import io

import pytest

from tunerun.launch.terminal import Event, Terminal, bar, duration, size


class Screen(io.StringIO):
    def __init__(self, *, is_terminal):
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self):
        return self._is_terminal


def event(count, seconds, *, total=200, done=False, note=""):
    return Event(label="train", count=count, total=total, unit="steps", seconds=seconds, note=note, done=done)


def terminal(*, is_terminal):
    screen, times = Screen(is_terminal=is_terminal), [0.0]
    return Terminal(screen, Screen(is_terminal=False), clock=lambda: times[0]), screen, times


def test_a_bar_has_share_counts_rate_and_time_left():
    assert bar(event(90, 30.0, note="loss 1.23"), 100) == (
        "train       [##########..............]   45%  90/200 steps  3.0/s  ETA 0:37  loss 1.23"
    )


def test_a_bar_without_a_total_counts():
    assert bar(event(90, 30.0, total=None), 100) == "train       90 steps  3.0/s"


@pytest.mark.parametrize("columns", [20, 60, 100])
def test_a_bar_is_never_wider_than_its_room(columns):
    assert len(bar(event(90, 30.0, note="x" * 200), columns)) <= columns


def test_a_bar_is_rewritten_in_place_and_taken_away_for_a_line():
    shown, screen, times = terminal(is_terminal=True)
    shown.event(event(1, 0.5))
    times[0] = 1.0
    shown.event(event(2, 1.0))
    shown.line("a warning")
    text = screen.getvalue()
    assert text.count("\r\x1b[K") == 2
    assert "\r\x1b[Ka warning\ntrain" in text


def test_a_bar_is_not_redrawn_for_every_event():
    shown, screen, _ = terminal(is_terminal=True)
    for count in range(50):
        shown.event(event(count, 0.01 * count))
    assert screen.getvalue().count("train") == 1


def test_short_work_leaves_nothing_on_a_terminal():
    shown, screen, _ = terminal(is_terminal=True)
    shown.event(event(1, 0.1))
    shown.event(event(200, 1.0, done=True))
    assert screen.getvalue().endswith("\r\x1b[K")


def test_without_a_terminal_a_line_comes_every_15_seconds_and_at_the_end():
    shown, screen, times = terminal(is_terminal=False)
    for second in range(61):
        times[0] = float(second)
        shown.event(event(second, float(second)))
    shown.event(event(200, 61.0, done=True))
    lines = screen.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("train         8%  15/200 steps")
    assert lines[-1] == "train: 200 steps in 1:01 (3.3/s)"
    assert "\r" not in screen.getvalue()


def test_without_a_terminal_short_work_says_nothing():
    shown, screen, _ = terminal(is_terminal=False)
    shown.event(event(1, 0.5))
    shown.event(event(200, 1.9, done=True))
    assert screen.getvalue() == ""


def test_a_reader_that_is_gone_does_not_stop_the_work():
    class Gone(Screen):
        def write(self, text):
            raise BrokenPipeError

    errors = Screen(is_terminal=False)
    shown = Terminal(Gone(is_terminal=False), errors)
    shown.line("one")
    shown.line("two")
    shown.line("bad", error=True)
    assert errors.getvalue() == "bad\n"


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "0:07"), (59.6, "1:00"), (760, "12:40"), (11109, "3:05:09")])
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("amount", "text"), [(12, "12 B"), (1500, "1.5 kB"), (123456, "123 kB"), (4.2e9, "4.2 GB"), (2.5e12, "2.5 TB")]
)
def test_sizes(amount, text):
    assert size(amount) == text
