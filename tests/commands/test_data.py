"""`tunerun data`, `tunerun data convert` and `tunerun data split` as they are typed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tunerun import cli
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.columns import width
from tunerun.commands import data
from tunerun.config.schema import DATA_PARTS
from tunerun.errors import UserError
from tunerun.formats.tokens import TokenStore

SPROUT = ROOT / "src" / "tunerun" / "assets" / "sprout"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, count: int, **fields: object) -> Path:
    rows = ({"question": f"What is {number}?", "answer": f"{number}", **fields} for number in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*argv: str) -> int:
    return cli.dispatch(["data", *argv])


@pytest.mark.parametrize("verb", [[], ["convert"], ["split"]])
def test_help_fits_a_hundred_columns(verb, capsys):
    assert run(*verb, "--help") == 0
    text = capsys.readouterr().out
    assert text.startswith(" ".join(["tunerun data", *verb]))
    assert max(map(width, text.splitlines())) <= 100
    assert all(part in text for part in DATA_PARTS) or not verb


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([""], "neither key=value nor one of convert, split"),
        (["convrt", "a", "b"], "Did you mean `tunerun data convert`"),
        (["spit", "a"], "Did you mean `tunerun data split`"),
        (["convert", "a.csv"], "name what to read and the file to write"),
        (["convert", "rows.jsonl", "b.jsonl", "--colums", "x"], "Did you mean --columns"),
        (["convert", "rows.jsonl", "b.jsonl", "--columns", "usr=a"], "usr=a is not PART=COLUMN"),
        (["convert", "rows.jsonl", "b.jsonl", "--columns", "user"], "user is not PART=COLUMN"),
        (["convert", "rows.jsonl", "b.jsonl", "--format", "alpac"], "there is no alpac"),
        (["convert", "rows.jsonl", "b.csv"], "is not named .jsonl"),
        (["convert", "rows.jsonl", "rows.jsonl"], "exists already"),
        (["convert", "none.jsonl", "b.jsonl"], "does not exist"),
        (["convert", "rows.jsonl", "b.jsonl", "--on-bad-rows", "skip"], "neither fail nor drop"),
        (["split", "rows.jsonl"], "--eval 0.1"),
        (["split", "rows.jsonl", "--eval", "1.5"], "neither a share"),
        (["split", "rows.jsonl", "--eval", "0"], "neither a share"),
        (["split", "rows.jsonl", "--eval", "0.5", "--seed", "x"], "not a whole number"),
        (["split", "--eval", "0.5"], "name one file"),
        (["split", "none.jsonl", "--eval", "0.5"], "is not a file"),
        (["rows.jsonl"], r"data\.path=rows\.jsonl"),
        (["nonsense"], "neither key=value nor one of convert, split"),
    ],
)
def test_mistakes_are_answered_with_what_to_type(argv, message, here):
    write(here / "rows.jsonl", 9)
    with pytest.raises(UserError, match=message):
        run(*argv)
    assert [path.name for path in here.iterdir()] == ["rows.jsonl"]


def test_a_converted_file_names_its_rows_and_their_format(here, capsys):
    write(here / "rows.jsonl", 3, id=7)
    assert run("convert", "rows.jsonl", "out.jsonl") == 0
    assert capsys.readouterr().out == "out.jsonl: 3 rows from columns (columns question, answer)\n"
    assert json.loads((here / "out.jsonl").read_text().splitlines()[0]) == {
        "messages": [{"role": "user", "content": "What is 0?"}, {"role": "assistant", "content": "0"}]
    }
    with pytest.raises(UserError, match="--force"):
        run("convert", "rows.jsonl", "out.jsonl")
    assert run("convert", "rows.jsonl", "out.jsonl", "--force") == 0


def test_columns_of_any_name_and_bad_rows(here, capsys):
    (here / "a.csv").write_text("F,A\nq,a\nr,\n")
    with pytest.raises(UserError, match=r"a\.csv:3"):
        run("convert", "a.csv", "out.jsonl", "--columns", "user=F,assistant=A")
    assert (
        run("convert", "a.csv", "out.jsonl", "--columns", "user=F", "--columns=assistant=A", "--on-bad-rows=drop") == 0
    )
    assert "1 rows could not be used" in capsys.readouterr().out


def test_a_workbook_is_read_by_sheet_and_letters(here):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.title = "Notes"
    book.active.append(["nothing"])
    sheet = book.create_sheet("DrugQA")
    sheet.append(["Question", "Source", "Date", "Answer"])
    sheet.append(["What is it?", "x", "y", "007"])
    book.save(here / "drugs.xlsx")
    assert run("convert", "drugs.xlsx", "out.jsonl", "--sheet", "DrugQA", "--columns", "user=A,assistant=D") == 0
    messages = json.loads((here / "out.jsonl").read_text())["messages"]
    assert [message["content"] for message in messages] == ["What is it?", "007"]


def test_a_split_writes_two_files_where_it_is_told_to(here, capsys):
    write(here / "rows.jsonl", 100)
    assert run("split", "rows.jsonl", "--eval", "20", "--out", "halves") == 0
    assert capsys.readouterr().out.splitlines() == [
        "rows: columns (columns question, answer)",
        "halves/rows-train.jsonl: 80 rows to train on",
        "halves/rows-eval.jsonl: 20 rows to evaluate on",
    ]
    with pytest.raises(UserError, match=r"rows-train\.jsonl: exists already[^Z]*rows-eval\.jsonl: exists already"):
        run("split", "rows.jsonl", "--eval", "20", "--out", "halves")
    before = (here / "halves" / "rows-eval.jsonl").read_bytes()
    assert run("split", "rows.jsonl", "--eval", "20", "--out", "halves", "--force", "--seed", "1") == 0
    assert (here / "halves" / "rows-eval.jsonl").read_bytes() != before


def texts_of(store: TokenStore) -> list[str]:
    backend = load_tokenizer(SPROUT).backend
    return [backend.decode(store.row(row)[0].tolist(), skip_special_tokens=False) for row in range(len(store))]


@pytest.mark.parametrize("key", ["data.eval_fraction=0.3", "data.eval_rows=7"])
def test_a_run_holds_out_what_a_split_writes(key, tunerun, tmp_path, monkeypatch):
    write(tmp_path / "rows.jsonl", 40)
    done = tunerun("data", "model.path=tunerun://sprout", "data.path=rows.jsonl", key, "seed=5", "run_dir=run")
    assert done.returncode == 0, done.stderr
    assert "training: " in done.stdout
    assert "report: run/report.html" in done.stdout
    assert max(map(width, done.stdout.splitlines())) <= 100
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Samples by length" in page and "<svg" in page
    monkeypatch.chdir(tmp_path)
    run("split", "rows.jsonl", "--eval", key.split("=")[1], "--seed", "5")
    rows = [json.loads(line) for line in (tmp_path / "rows-eval.jsonl").read_text().splitlines()]
    held = texts_of(TokenStore.open(tmp_path / "run" / "data" / "eval"))
    assert len(held) == len(rows) > 0
    assert all(row["question"] in text for row, text in zip(rows, held, strict=True))


def test_bad_rows_end_in_exit_code_2_with_a_report_that_can_be_read(tunerun, tmp_path):
    source = write(tmp_path / "rows.jsonl", 40)
    source.write_text(source.read_text() + '{"question": "q"}\n{\n')
    done = tunerun("data", "model.path=tunerun://sprout", "data.path=rows.jsonl", "run_dir=run")
    assert done.returncode == 2
    assert "rows.jsonl:41: `answer` is missing." in done.stderr
    assert "rows.jsonl:42: " in done.stderr
    assert "run/data.failed/bad_rows.jsonl" in done.stderr.replace("\n      ", " ")
    assert "Traceback" not in done.stderr
    assert max(map(width, done.stderr.splitlines())) <= 100
    assert json.loads((tmp_path / "run" / "data.failed" / "report.json").read_text())["dropped"] == {
        "missing-field": 1,
        "bad-json": 1,
    }
    assert "missing-field" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("rows.jsonl")
    with pytest.raises(UserError, match=r"rows\.jsonl is neither a file nor a folder"):
        data.main(["model.path=tunerun://sprout", "data.path=rows.jsonl"])


def test_data_for_several_nodes_are_prepared_by_the_one_where_it_is_typed(here, capfd):
    rows = write(here / "rows.jsonl", 12)
    spread = ("cluster=slurm", "cluster.nodes=2", "hardware=ddp", "hardware.device=cpu", "hardware.processes=1")
    assert run("+recipe=quickstart", f"data.path={rows}", "run_dir=mine", *spread) == 0
    assert "the first samples, trained text marked" in capfd.readouterr().out
