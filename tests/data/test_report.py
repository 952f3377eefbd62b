"""The report of the data stage: what it counts, what it says, and what it leaves when rows cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.data.test_stage import Run, pairs, write
from tunerun import artifacts
from tunerun.data import report
from tunerun.data.report import Tally
from tunerun.data.rows import BadRow
from tunerun.data.summary import summary
from tunerun.errors import UserError
from tunerun.run import results

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def run(tmp_path, chat_folder) -> Run:
    return Run(tmp_path, chat_folder)


def test_the_report_is_that_of_the_golden_file(run, tmp_path):
    rows = [*pairs(30), pairs(1)[0], {"question": "Who is number 7?", "answer": " "}, {"question": "why " * 99}]
    rows.append({"question": "why " * 99, "answer": "yes"})
    source = write(tmp_path / "a.jsonl", rows)
    run(source, on_bad_rows="drop", max_dropped_fraction=0.1, eval_rows=4, max_length=64, packing=True)
    text = (tmp_path / "data" / "report.json").read_text(encoding="utf-8").replace(str(tmp_path), "")
    assert json.loads(text) == json.loads((GOLDEN / "report-2.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("schema", [1, 2])
def test_reports_of_every_schema_are_read(schema, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "report.json").write_text((GOLDEN / f"report-{schema}.json").read_text(encoding="utf-8"))
    found = results._data_report(folder)
    newest = json.loads((GOLDEN / "report-2.json").read_text(encoding="utf-8"))
    assert found is not None
    later = {"schema", "empty_answers", "role_order_faults", "encoding_faults", "trained_share"}
    assert found.keys() >= newest.keys() - later
    assert found["sources"][0].keys() == newest["sources"][0].keys()


def test_a_report_of_a_later_version_is_refused(tmp_path):
    (tmp_path / "report.json").write_text('{"schema": 99}')
    with pytest.raises(UserError, match="schema 99"):
        results._data_report(tmp_path)


def test_a_failed_run_leaves_a_report_and_every_bad_row(run, tmp_path):
    source = write(tmp_path / "a.jsonl", [*pairs(5), *[{"question": "q", "answer": ""}] * 50, {"question": "q"}])
    with pytest.raises(UserError) as caught:
        run(source)
    folder = tmp_path / "data.failed"
    assert str(folder / "bad_rows.jsonl") in str(caught.value)
    listed = [json.loads(line) for line in (folder / "bad_rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["line"] for row in listed] == list(range(6, 57))
    assert listed[0] == {
        "file": str(source),
        "line": 6,
        "reason": "empty-answer",
        "detail": "message 2, the assistant's, is empty.",
    }
    found = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert found["schema"] == artifacts.DATA_SCHEMA
    assert (found["rows_read"], found["rows_kept"], found["empty_answers"]) == (56, 5, 50)
    assert len(found["examples"]) == 21
    assert found["length_tokens"]["counts"] == [5] or sum(found["length_tokens"]["counts"]) == 5
    assert not (tmp_path / "data").exists()
    run(write(source, pairs(5)))
    assert not folder.exists()


def test_rows_that_are_dropped_are_all_listed_beside_the_data(run, tmp_path):
    source = write(tmp_path / "a.jsonl", [*pairs(50), {"question": "q", "answer": ""}])
    run(source, on_bad_rows="drop", max_dropped_fraction=0.02)
    assert len((tmp_path / "data" / "bad_rows.jsonl").read_text().splitlines()) == 1


def test_what_may_be_dropped_is_said_when_it_is_too_little(run, tmp_path):
    source = write(tmp_path / "a.jsonl", [*pairs(5), {"question": "q", "answer": ""}])
    with pytest.raises(UserError, match=r"At most 0\.01 of all rows may be dropped") as caught:
        run(source, on_bad_rows="drop")
    assert caught.value.problems[-1].where == "data.max_dropped_fraction"


def test_problems_show_the_first_rows_of_each_reason_and_the_lines_of_more():
    tally = Tally(rows_read=100)
    for line in range(1, 31):
        tally.add_bad(BadRow("a.jsonl", line, "empty-answer", "the answer is empty."))
    tally.add_bad(BadRow("b.jsonl", 7, "missing-field", "`answer` is missing."))
    found = [str(problem) for problem in report.problems(tally, rows=True)]
    lines = ", ".join(map(str, range(4, 16)))
    assert found == [
        "a.jsonl:1: the answer is empty.",
        "a.jsonl:2: the answer is empty.",
        "a.jsonl:3: the answer is empty.",
        f"a.jsonl: 27 more rows with empty-answer: lines {lines} and 15 more. Write the answer or remove the row.",
        "b.jsonl:7: `answer` is missing.",
    ]
    assert report.problems(tally, rows=False) == []


def test_copies_are_counted_and_shown_with_both_places(run, tmp_path):
    long = " ".join(f"word{number}" for number in range(80))
    rows = [{"question": "q", "answer": f"{long} {number}"} for number in (1, 1, 2)]
    rows += [{"id": number, **row} for number, row in enumerate(pairs(20) + pairs(1))]
    source = write(tmp_path / "a.jsonl", rows)
    store = run(source)
    found = run.report["duplicates"]
    assert (found["exact"], found["near"], len(store)) == (2, 1, 24)
    places = [(item["line"], item["of"]["line"], item["exact"]) for item in found["examples"]]
    assert places == [(2, 1, True), (24, 4, True), (3, 1, False)]
    assert run.report["overlap"] is None
    assert "2 exact and 1 near copies" in summary(run.report)
    assert "data.drop_duplicates=true leaves out the exact ones\n" in summary(run.report)
    assert len(run(source, drop_duplicates=True)) == 22
    assert run.report["dropped"] == {"duplicate": 2}
    assert run.report["rows_kept"] == 22


def test_training_rows_that_are_evaluated_on_are_counted_and_left_out(run, tmp_path):
    train = write(tmp_path / "a.jsonl", pairs(20))
    same = {"messages": [{"role": "system", "content": "Be brief."}, *_messages(pairs(20)[3])]}
    held = write(tmp_path / "b.jsonl", [same, {"messages": _messages({"question": "new", "answer": "new"})}])
    store = run(train, eval_path=(str(held),))
    assert (len(store), run.report["overlap"]["exact"], run.report["duplicates"]["exact"]) == (20, 1, 0)
    example = run.report["overlap"]["examples"][0]
    assert (example["file"], example["line"], example["of"]) == (str(train), 4, {"file": str(held), "line": 1})
    assert "1 exact and 0 near copies of eval rows\n" in summary(run.report)
    assert "data.drop_duplicates=true leaves out the exact ones\n" in summary(run.report)
    store = run(train, eval_path=(str(held),), drop_duplicates=True)
    assert (len(store), len(run.eval), run.report["dropped"]) == (19, 2, {"in-eval": 1})


def _messages(row: dict) -> list[dict]:
    return [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]


def test_a_split_leaves_no_row_on_both_sides(run, tmp_path):
    rows = [{"copy": copy, **row} for row in pairs(60) for copy in range(2)]
    run(write(tmp_path / "a.jsonl", rows), eval_fraction=0.3)
    assert run.report["overlap"]["exact"] == 0
    assert run.report["duplicates"]["exact"] == 60


def test_rows_that_a_weight_repeats_are_no_copies(run, tmp_path):
    from tunerun.config.schema import SourceConfig

    source = write(tmp_path / "a.jsonl", pairs(5))
    store = run(sources={"mine": SourceConfig(path=(str(source),), weight=3.0)}, drop_duplicates=True)
    assert (len(store), run.report["duplicates"]["exact"]) == (15, 0)


def test_labels_and_sides_are_counted(run, tmp_path):
    labelled = [{"messages": _messages(row), "label": number % 3 == 0} for number, row in enumerate(pairs(9))]
    run(write(tmp_path / "a.jsonl", labelled), kind="kto")
    assert run.report["labels"] == {"good": 3, "bad": 6}
    assert "3 good, 6 bad" in summary(run.report)
    preview = (tmp_path / "data" / "preview.txt").read_text(encoding="utf-8")
    assert "--- sample 1, good answer: " in preview and "--- sample 2, bad answer: " in preview
    judged = [{"prompt": row["question"], "chosen": row["answer"] + "y" * 9, "rejected": "no"} for row in pairs(4)]
    run(write(tmp_path / "b.jsonl", judged), kind="dpo")
    sides = run.report["sides"]
    assert sides["chosen"]["rows"] == sides["rejected"]["rows"] == 4
    assert sides["chosen"]["tokens"] > sides["rejected"]["tokens"]
    preview = (tmp_path / "data" / "preview.txt").read_text(encoding="utf-8")
    assert preview.index("pair 1, chosen") < preview.index("pair 1, rejected") < preview.index("pair 2, chosen")


def test_every_line_of_the_summary_fits_a_hundred_columns(run, tmp_path):
    folder = tmp_path / ("名" * 60)
    folder.mkdir()
    rows = [*pairs(40, length=20), *pairs(3, length=400), *pairs(3, length=20)]
    for name in "abcdefghijk":
        write(folder / f"{name}.jsonl", rows)
    run(folder, packing=True, max_length=128, eval_fraction=0.2)
    from tunerun.columns import width

    assert max(width(line) for line in summary(run.report).splitlines()) <= 100
