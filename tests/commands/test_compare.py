from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.serve.conftest import write_plan
from tests.serve.test_chat import CTRL_C, Terminal
from tests.tiny import tiny_qwen2
from tunerun import artifacts
from tunerun.base_model import BaseModel, write_base
from tunerun.commands import compare, compare_table
from tunerun.config.schema import MethodConfig, ServeConfig
from tunerun.data.questions import Question
from tunerun.errors import UserError
from tunerun.plan.placement import Placement
from tunerun.plan.steps import ServeStep
from tunerun.serve.chat import Ask
from tunerun.serve.compare import Answer, answer_all, answers_at_once, loaded

FEW = ("--max-new-tokens", "8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose merged model is not its base."""
    folder = tmp_path_factory.mktemp("runs") / "parrot"
    base = tiny_qwen2(folder.with_name("base"), seed=5)
    tiny_qwen2(folder / artifacts.MERGED)
    write_base(folder, BaseModel(folder=base, path=str(base), revision=None, sha256="0"))
    write_plan(folder, ServeStep(serve=ServeConfig(), placement=Placement()))
    return folder


def tunerun(*arguments: object, said: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tunerun", *map(str, arguments)], input=said, capture_output=True, text=True,
        encoding="utf-8", timeout=200, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, check=False,
    )  # fmt: skip


def test_a_run_alone_is_compared_with_its_base_a_line_a_question(run):
    done = tunerun("compare", run, *FEW, said="fox\ndog\n/undo\n/reset\nfox\n/nonsense\n")
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [len(line) for line in lines] == [2, 2, 2]
    assert lines[0] == lines[2]
    assert lines[0][0] != lines[0][1]
    assert "no command /nonsense" in done.stderr
    chat = tunerun("chat", run, *FEW, said="fox\n")
    base = tunerun("chat", run, "--base", *FEW, said="fox\n")
    assert lines[0] == [base.stdout.rstrip("\n"), chat.stdout.rstrip("\n")]


@pytest.mark.slow
def test_a_terminal_shows_both_answers_while_they_are_written_and_ctrl_c_stops_them(run):
    terminal = Terminal(run, "--max-new-tokens", 400, program=("-m", "tunerun", "compare"))
    terminal.until("> $", seconds=60)
    engines = [int(pid) for pid in children_of(terminal.pid)]
    assert len(engines) == 2
    # The second model stands still, so that the first one's answer is seen to grow without it.
    os.kill(engines[1], signal.SIGSTOP)
    terminal.type("fox\n")
    terminal.until("PARROT-BASE\r\n[^\r\n]+")
    terminal.until_readline(waits=False)
    time.sleep(0.5)
    terminal.type(CTRL_C)
    terminal.until("PARROT\r\n.*\\[stopped\\](?s:.*)> $")
    os.kill(engines[1], signal.SIGCONT)
    terminal.type("/quit\n")
    assert terminal.leave() == 0


@pytest.mark.slow
def test_adapters_of_the_same_weights_are_answered_by_one_process_at_the_same_time(run, tmp_path):
    folders = [adapter(run, tmp_path / name, seed=seed) for seed, name in enumerate(("polite", "brief"))]
    base = json.loads((run / artifacts.MODEL).read_text(encoding="utf-8"))["folder"]
    options = compare._parser().parse_args([base, *(f"{base}+{folder}" for folder in folders), *FEW])
    targets = compare._targets(options)
    assert [target.name for target in targets] == ["base", "polite", "brief"]
    asked = [[{"role": "user", "content": text}] for text in ("fox", "dog")]
    with loaded(targets, Placement(), options) as conversations:
        assert len({id(conversation.engine) for conversation in conversations}) == 1
        in_turn = [answer_all(conversation, asked, lambda: None) for conversation in conversations]
        at_once = answers_at_once(conversations, [Ask("fox")] * 3, None)
    alone = []
    for target in targets:
        with loaded([target], Placement(), options) as (conversation,):
            alone.append(answer_all(conversation, asked, lambda: None))
    assert in_turn == alone
    assert at_once == [fox for fox, _ in alone]
    assert len({fox.text for fox in at_once}) == 3


def children_of(pid: int) -> list[str]:
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True)
    return done.stdout.split()


def adapter(run: Path, folder: Path, *, seed: int) -> Path:
    import torch

    from tunerun.models import adapters, load

    model = load.load_model(run / artifacts.MERGED, dtype=torch.float32, device="cpu")
    adapted = adapters.add_adapter(model, MethodConfig(rank=4, alpha=8.0), seed=seed)
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                parameter.normal_(0, 0.05)
    adapters.save_adapter(adapted, folder, base_name="tiny")
    return folder


@pytest.mark.slow
def test_a_question_that_no_model_can_take_is_told_and_the_next_one_is_asked(run):
    done = tunerun("compare", run, *FEW, said="fox " * 900 + "\nfox\n")
    assert done.returncode == 1
    first, second = done.stdout.splitlines()
    assert first == "\t"
    assert all(second.split("\t"))
    assert "2 answers are missing" in done.stderr


def test_a_file_of_questions_becomes_a_table_with_scores(run, tmp_path):
    rows = [{"question": "fox", "answer": "dog"}, {"question": "fox " * 400}, {"question": "a|b\n<i>"}]
    file = tmp_path / "q.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = tunerun("compare", f"{run}@base", run, "--prompts", file, "--output", tmp_path / "t.json", *FEW)
    # A question that does not fit is told, and the others are answered all the same.
    assert done.returncode == 1, done.stderr
    assert "2 answers are missing" in done.stderr
    assert "Traceback" not in done.stderr
    table = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    assert table["models"] == ["parrot-base", "parrot"]
    assert set(table["scores"]["parrot"]) == {"bleu4", "rouge1", "rouge2", "rougeL"}
    assert table["settings"]["max_new_tokens"] == 8
    assert [row["reference"] for row in table["rows"]] == ["dog", None, None]
    assert table["rows"][0]["answers"]["parrot"]["text"]
    assert "context" in table["rows"][1]["answers"]["parrot"]["fault"]
    answers = tunerun("chat", run, *FEW, said="fox\n").stdout.rstrip("\n")
    assert table["rows"][0]["answers"]["parrot"]["text"].replace("\n", "\\n").replace("\r", "\\r") == answers


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("{run}/merged",), "nothing to compare it with"),
        (("{run}@base",), "nothing to compare it with"),
        (("{run}", "{run}@7"), "no checkpoint of step 7"),
        (("{run}",) * 4, "side by side"),
        (("{run}", "{run}"), "named twice"),
        (("{run}", "--output", "t.md"), "needs --prompts"),
        (("{run}", "--columns", "user=x"), "needs --prompts"),
        (("{run}", "--prompts", "q.txt", "--output", "t.pdf"), "no kind of table"),
        (("{run}", "--prompts", "absent.txt"), "does not exist"),
    ],
)
def test_what_cannot_be_compared_is_told(run, arguments, what):
    with pytest.raises(UserError, match=what):
        compare.main([argument.format(run=run) for argument in arguments])


def test_a_path_with_an_at_sign_is_a_path(run, tmp_path):
    folder = tmp_path / "model@7"
    folder.symlink_to(run)
    assert compare._split(str(folder)) == (folder, None, False)
    assert compare._split(f"{folder}@40") == (folder, 40, False)
    assert compare._split(f"{folder}@base") == (folder, None, True)


TABLE = compare_table.build(
    ["a", "b"],
    [
        Question(({"role": "system", "content": "s"}, {"role": "user", "content": "x|y\n<b>"}), "the cat sat on a mat"),
        Question(({"role": "user", "content": "z"},), None),
    ],
    [[Answer("the cat sat on a mat"), Answer("", "it is too long")], [Answer("no"), Answer("<script>1</script>")]],
    {"temperature": 0.0, "stop": [], "system": None},
)


def test_scores_count_the_rows_that_have_an_answer():
    assert TABLE.scores["a"]["bleu4"] == pytest.approx(100)
    assert TABLE.scores["b"]["rougeL"] == 0
    lines = compare_table.scores_text(TABLE).splitlines()
    assert lines[0].split() == ["BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L"]
    assert lines[1].split() == ["a", "100.0", "100.0", "100.0", "100.0"]


def test_markdown_cells_stay_in_their_columns():
    text = compare_table.to_markdown(TABLE)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line.replace("\\|", "").count("|") for line in lines] == [6] * 4 + [5] * 4
    assert "system: s<br>x\\|y<br>&lt;b>" in text
    assert "(it is too long)" in text
    assert text.endswith("temperature 0.0\n")


def test_html_shows_answers_as_text():
    text = compare_table.to_html(TABLE)
    assert "&lt;script&gt;1&lt;/script&gt;" in text
    assert "<script>" not in text
    assert "http" not in text


def test_no_references_no_scores():
    table = compare_table.build(["a"], [Question(({"role": "user", "content": "z"},), None)], [[Answer("x")]], {})
    assert table.scores == {}
    assert "Reference" not in compare_table.to_markdown(table)
