import pytest

from tunerun.columns import cut, fill, pad, side_by_side, width, wrap


@pytest.mark.parametrize(
    ("text", "columns"), [("abc", 3), ("你好", 4), ("a你", 3), ("e\u0301", 1), ("ｈｉ", 4), ("한글", 4), ("", 0)]
)
def test_width(text, columns):
    assert width(text) == columns


def test_wide_text_is_padded_and_cut_by_columns():
    assert pad("你好", 6) == "你好  "
    assert cut("你好世界", 7) == "你好..."
    assert cut("你好世界", 8) == "你好世界"


@pytest.mark.parametrize("columns", [5, 12, 40])
@pytest.mark.parametrize(
    "text",
    ["the quick brown fox jumps", "我是一个很小的语言模型。", "mixed 中文 and English 词", "x" * 90, "a\nb\n\nc"],
)
def test_no_line_is_too_wide_and_nothing_is_lost(text, columns):
    lines = wrap(text, columns, max_lines=99)
    assert max(map(width, lines)) <= columns
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_words_stay_whole_and_chinese_breaks_anywhere():
    assert wrap("the quick brown", 9, 9) == ["the quick", "brown"]
    assert wrap("我是一个模型", 8, 9) == ["我是一个", "模型"]


def test_too_many_lines_end_in_dots():
    lines = wrap("one two three four five six", 9, 2)
    assert len(lines) == 2
    assert lines[-1].endswith("...")
    assert width(lines[-1]) <= 9


def test_control_characters_do_not_reach_the_terminal():
    assert wrap("a\x1b[31mred\x07", 40, 1) == ["a\ufffd[31mred\ufffd"]


def test_two_texts_side_by_side_stay_in_their_columns():
    lines = side_by_side(("我是一个很小的语言模型" * 3, "short"), 41, 9)
    assert all(width(line) <= 41 for line in lines)
    assert {width(line.partition("|")[0]) for line in lines} == {20}
    assert lines[0].endswith("| short")


@pytest.mark.parametrize("columns", [20, 60, 100])
@pytest.mark.parametrize("text", ["a word and another " * 9, "数据" * 60, "a 问题 and 答案， " * 12])
def test_a_message_fits_its_columns_and_loses_nothing(text, columns):
    lines = fill(text, columns, first="  - ", rest="      ")
    assert max(map(width, lines)) <= columns
    assert "".join("".join(lines).split()) == "-" + "".join(text.split())
    assert lines[0].startswith("  - ")
    assert all(line.startswith("      ") for line in lines[1:])


def test_a_long_path_in_a_message_stays_whole():
    path = "/home/用户/" + "x" * 90 + "/数据.jsonl"
    assert path in [line.strip() for line in fill(f"there is no file {path} here", 40)]


def test_blanks_that_align_stay():
    assert fill("name      value", 100) == ["name      value"]
