"""A teacher's answers as a user collects them: stopped, resumed, replayed, locked, and trained on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.teacher_server import TeacherServer, said

Command = Callable[..., CompletedProcess[str]]
KEY = "a-key-of-no-known-form"


@pytest.fixture
def teacher() -> Iterator[TeacherServer]:
    server = TeacherServer(lambda body: said(f"It is {body['messages'][-1]['content'][:9]}."))
    yield server
    server.close()


def arguments(teacher: TeacherServer, *more: str) -> list[str]:
    prompts = Path("prompts.csv").absolute()
    where = [f"answer.url={teacher.url}", "answer.model=teacher", f"answer.prompts={prompts}", "run_dir=made"]
    return ["+recipe=distill-answers", "stages=[answer,data]", *where, *more]


@pytest.fixture(autouse=True)
def _prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.csv").write_text("question\n" + "".join(f"Number {number}?\n" for number in range(30)))


def made(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path("made") / name).read_text(encoding="utf-8"))
    return found


def test_answers_are_collected_once_reported_replayed_and_locked(
    tunerun: Command, teacher: TeacherServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", KEY)
    teacher.key = KEY
    call = arguments(teacher, "answer.api_key_env=MINE")
    done = tunerun(*call)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "30 rows from 30 prompts, answered by teacher-1" in done.stdout
    assert "data.path=made/answer/answers.jsonl" in done.stdout
    assert made("data/report.json")["rows_kept"] == 30
    report, card = (Path("made", name).read_text(encoding="utf-8") for name in ("report.html", "README.md"))
    assert "Rows made" in report and "teacher-1" in report
    again = tunerun(*call)
    assert "answer: unchanged, skipped" in again.stdout and "data: unchanged, skipped" in again.stdout
    assert len(teacher.asked) == 30
    teacher.answer = lambda body: said("Something else.")
    assert "identical" in tunerun("replay", "made", "run_dir=replayed").stdout
    assert len(teacher.asked) == 30
    locked = tunerun("lock", "made", "mine")
    assert locked.returncode == 0, locked.stdout + locked.stderr
    Path("prompts.csv").write_text("question\nAnother?\n")
    refused = tunerun("+recipe=mine", "run_dir=locked")
    assert refused.returncode == 2 and "prompts.csv is not what it was" in " ".join(refused.stderr.split())
    written = b"".join(file.read_bytes() for file in Path().rglob("*") if file.is_file())
    assert KEY.encode() not in written
    assert "## Training" not in card


def test_a_stopped_run_is_resumed_and_asks_nothing_twice(teacher: TeacherServer, tunerun: Command) -> None:
    teacher.delay = 0.2
    process = subprocess.Popen(
        [sys.executable, "-m", "tunerun", *arguments(teacher, "answer.concurrent=2")],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    journal = Path("made/answer/journal.jsonl")
    while not journal.exists() or journal.read_bytes().count(b"\n") < 4:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 75, output
    assert "go on: tunerun resume made" in output
    known, asked = journal.read_bytes().count(b"\n"), len(teacher.asked)
    assert known < 30
    teacher.delay = 0.0
    done = tunerun("resume", "made")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{known} of 30 rows were answered before" in done.stdout
    assert len(teacher.asked) == asked + 30 - known
    changed = tunerun("resume", "made", "answer.temperature=0.5", "answer.max_prompts=3")
    assert "3 rows from 3 prompts" in changed.stdout and "3 rows read, 3 kept" in changed.stdout


def test_answers_go_beside_other_rows(tunerun: Command, teacher: TeacherServer) -> None:
    rows = [{"question": f"Q{number}", "answer": "A"} for number in range(5)]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = tunerun(*arguments(teacher, "data.path=mine.jsonl", "data.eval_path=mine.jsonl", "data.eval_fraction=0"))
    assert done.returncode == 0, done.stdout + done.stderr
    report = made("data/report.json")
    assert {Path(item["file"]).name: item["rows"] for item in report["sources"]}["answers.jsonl"] == 30
    assert (report["rows"], report["eval"]["samples"]) == (35, 5)


def test_the_plan_shows_the_teacher_and_what_is_missing(tunerun: Command, teacher: TeacherServer) -> None:
    planned = tunerun("plan", *arguments(teacher, "answer.api_key_env=NOT_SET"))
    text = " ".join(planned.stdout.split())
    assert f"teacher teacher at {teacher.url} answers" in text
    assert "answer.api_key_env: the environment variable NOT_SET holds no key" in text
    assert tunerun(*arguments(teacher, "answer.api_key_env=NOT_SET")).returncode == 2
    far = tunerun("plan", *arguments(teacher, "answer.url=http://10.1.2.3:8000/v1"))
    assert "travel to and from 10.1.2.3 without encryption" in " ".join(far.stdout.split())
    missing = tunerun("plan", *arguments(teacher, "answer.prompts=nowhere.txt"))
    assert "answer.prompts: there is no file or folder nowhere.txt" in " ".join(missing.stdout.split())
    assert teacher.asked == []


def test_a_sweep_does_not_ask_anew_for_each_trial(tunerun: Command, teacher: TeacherServer) -> None:
    done = tunerun("-m", *arguments(teacher)[:-1], "train.learning_rate=1e-3,2e-3")
    assert done.returncode == 2
    assert "each trial would ask the teacher anew" in " ".join(done.stderr.split())
    assert teacher.asked == []


@pytest.fixture
def served() -> Iterator[str]:
    """The address of the shipped model, served by tunerun itself."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tunerun", "serve", "tunerun://sprout", "serve.port=0"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    found = next(filter(None, (re.search(r"at (http://\S+/v1)", line) for line in process.stdout)))
    yield found.group(1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)


def test_a_student_learns_what_a_served_model_answers(tunerun: Command, served: str) -> None:
    limits = ("answer.max_prompts=12", "data.eval_fraction=0", "train.max_steps=4", "eval.max_new_tokens=4")
    done = tunerun("+recipe=distill-answers", f"answer.url={served}", "answer.model=sprout", "run_dir=made", *limits)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in Path("made/answer/answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 12
    assert "sprout" in rows[0]["messages"][-1]["content"].lower()
    models = made("eval/report.json")["models"]
    assert models["tuned"]["loss"] < models["base"]["loss"]
    assert "12 answers of `sprout`" in Path("made/README.md").read_text(encoding="utf-8")
