from tunerun import markdown


def test_cells_stay_in_their_columns_and_lines():
    found = markdown.table(["a", "b"], [["x|y", "one\r\ntwo"], ["`code`", ""]])
    assert found == "| a | b |\n| --- | --- |\n| x\\|y | one<br>two |\n| `code` |  |"


def test_what_a_model_answered_is_text():
    assert markdown.table(["a"], [["<b>\\| &lt; & more"]]).endswith("\n| &lt;b>\\\\\\| &amp;lt; & more |")
