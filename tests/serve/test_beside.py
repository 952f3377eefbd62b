"""Answers that are drawn while they are written, read back from a terminal."""

from __future__ import annotations

import io
import os
import re

import pytest

from tunerun import columns
from tunerun.serve import beside

NAMES = ("first", "second", "third")
ANSWERS = (
    "我是一个很小的语言模型。" * 9,
    "a word and another " * 20 + "x" * 70 + " 你好" * 30,
    "one\n\n- two\n- three\x1b[31m\n" + "y" * 25,
)
SEQUENCE = re.compile(r"\x1b\[(\d*)([A-Z])")


class Screen:
    """A terminal with some lines, and all that left it at its top."""

    def __init__(self, height: int) -> None:
        self.lines, self.height, self.row = [""], height, 0

    def write(self, text: str) -> None:
        for part in re.split(r"(\x1b\[\d*[A-Z]|\n)", text):
            found = SEQUENCE.fullmatch(part)
            if part == "\n":
                self.row += 1
                self.lines += [""] * (self.row + 1 - len(self.lines))
            elif found is None:
                self.lines[self.row] += part
            elif found[2] == "A":
                top = max(len(self.lines) - self.height, 0)
                self.row -= int(found[1])
                assert self.row >= top, "it moves above the screen"
            elif found[2] == "K":
                self.lines[self.row] = ""
            else:
                del self.lines[self.row + 1 :]
                assert (found[2], self.lines[self.row]) == ("J", "")


def drawn(step: int, width: int, height: int, answers: tuple[str, ...] = ANSWERS) -> Screen:
    """Lets answers grow by so many characters at a time, the second twice as fast as the others."""
    screen, stream = Screen(height), io.StringIO()
    writer = beside.Columns(NAMES, stream, os.terminal_size((width, height)))
    lengths = [0] * len(answers)
    while any(length < len(text) for length, text in zip(lengths, answers, strict=True)):
        lengths = [length + step * (1 + place % 2) for place, length in enumerate(lengths)]
        texts = [text[:length] for text, length in zip(answers, lengths, strict=True)]
        writer.show(texts, [length < len(text) for length, text in zip(lengths, answers, strict=True)])
        screen.write(stream.getvalue())
        stream.seek(0)
        stream.truncate()
    return screen


@pytest.mark.parametrize("step", [1, 3, 50, 1000])
@pytest.mark.parametrize("height", [2, 8, 60])
@pytest.mark.parametrize("width", [75, 120])
def test_what_grew_on_the_screen_is_what_is_drawn_at_once(step, width, height):
    heads = columns.side_by_side([name.upper() for name in NAMES], width - 1, 1)
    assert drawn(step, width, height).lines == [*heads, *columns.side_by_side(ANSWERS, width - 1, 1000), "", ""]


def test_lines_stay_within_the_terminal_and_columns_below_their_names():
    lines = drawn(7, 80, 24).lines
    assert max(map(columns.width, lines)) < 80
    assert lines[0].split() == ["FIRST", "|", "SECOND", "|", "THIRD"]
    assert "\x1b" not in "".join(lines)


def test_a_word_is_on_the_screen_before_the_answer_ends():
    stream = io.StringIO()
    writer = beside.Columns(NAMES, stream, os.terminal_size((90, 24)))
    writer.show(["", "Hello", ""], [True] * 3)
    assert "Hello" in stream.getvalue()


def test_answers_stand_below_each_other_where_there_is_little_room(monkeypatch):
    for variable, value in (("COLUMNS", "60"), ("TERM", "dumb")):
        stream = io.StringIO()
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            writer = beside.writer(NAMES, stream)
        writer.show(["a\x1b", "now", ""], [True] * 3)
        writer.show(["a\x1bb", "now and", ""], [True, False, True])
        assert stream.getvalue() == "FIRST\na\ufffdb"
        writer.show(["a\x1bbc", "now and", ""], [False, False, True])
        writer.show(["a\x1bbc", "now and", "c"], [False] * 3)
        assert stream.getvalue() == "FIRST\na\ufffdbc\n\nSECOND\nnow and\n\nTHIRD\nc\n\n"
