from tunerun.sprout.score import table


def row(family, language, answer):
    return {"family": family, "language": language, "messages": [{"content": "?"}, {"content": answer}]}


def test_right_answers_are_counted_by_family_and_language():
    rows = [row("sum", "en", "2"), row("sum", "en", "3"), row("sum", "zh", "4"), row("spelling", "en", "c-a-t")]
    assert table(rows, ["2", " 3\n", "5", "c-a-t."]).splitlines()[2:] == [
        "| spelling | 0/1 |  |",
        "| sum | 2/2 | 0/1 |",
        "| all | 2/3 | 0/1 |",
    ]
