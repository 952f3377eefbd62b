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
from tests.teacher_server import TeacherServer, echo, said, status
from tunerun import artifacts
from tunerun.errors import UserError
from tunerun.plan import steps


def texts(rows: list[dict]) -> list[str]:
    return [row["messages"][-1]["content"] for row in rows]


def lines(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_are_in_the_order_of_the_prompts_and_say_where_they_come_from(run, teacher, questions):
    teacher.answer = lambda body: time.sleep(int(body["messages"][-1]["content"][9:-1]) % 5 / 100) or echo(body)
    rows = run(questions, concurrent=7)
    assert [row["messages"][0]["content"] for row in rows] == [f"Question {number}?" for number in range(20)]
    assert all(text.startswith(f"You said: Question {number}?") for number, text in enumerate(texts(rows)))
    assert rows[3]["teacher"] == {
        "model": "teacher-1", "finish_reason": "stop", "prompt_tokens": 3, "completion_tokens": 5,
        "prompt": "questions.txt:4", "sample": 0,
    }  # fmt: skip
    assert 1 < teacher.peak <= 7
    assert (run.report["prompts"], run.report["rows"], run.report["models"]) == (20, 20, {"teacher-1": 20})


def test_what_is_asked_is_what_the_settings_say(run, teacher, questions):
    run(
        questions, system="Be brief.", temperature=0.5, top_p=0.9, max_new_tokens=7, max_prompts=1,
        extra={"top_k": 3, "chat_template_kwargs": {"enable_thinking": False}},
    )  # fmt: skip
    (body,) = teacher.asked
    assert isinstance(body.pop("seed"), int)
    assert body == {
        "model": "teacher", "temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "top_k": 3,
        "chat_template_kwargs": {"enable_thinking": False},
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Question 0?"}],
    }  # fmt: skip
    assert teacher.agents.pop().startswith("tunerun/")


def test_null_in_extra_leaves_a_field_out(run, teacher, questions):
    run(questions, max_prompts=1, extra={"seed": None, "max_tokens": None, "max_completion_tokens": 9})
    assert set(teacher.asked[0]) == {"model", "messages", "max_completion_tokens"}


def test_seeds_belong_to_prompts_and_not_to_their_places(run, teacher, questions, tmp_path):
    first = run(questions, samples=2)
    assert len({body["seed"] for body in teacher.asked}) == 40
    backwards = tmp_path / "backwards.txt"
    backwards.write_text("".join(reversed(questions.read_text().splitlines(keepends=True))) + "New?\n")
    second = run(backwards, samples=2)
    assert len(teacher.asked) == 42, "only the new prompt was asked"
    assert sorted(texts(first)) == sorted(texts(second[:-2]))
    run(questions, samples=2, seed=7)
    assert len(teacher.asked) == 82


def test_copies_of_a_prompt_are_asked_once(run, teacher, tmp_path):
    rows = run(lines(tmp_path / "twice.jsonl", [{"prompt": "Hi?"}, {"prompt": "Hi?"}, {"prompt": "Ho?"}]))
    assert len(rows) == 3
    assert sorted(teacher.prompts()) == ["Hi?", "Ho?"]


def test_every_answer_of_a_conversation_is_replaced_in_turn(run, teacher, tmp_path):
    kept = {"role": "assistant", "content": "Example.", "weight": 0}
    user = [{"role": "user", "content": f"Q{number}"} for number in range(3)]
    turns = [user[0], kept, user[1], {"role": "assistant", "content": "Old."}, user[2]]
    (row,) = run(lines(tmp_path / "chat.jsonl", [{"messages": turns}]), extra={"seed": None})
    assert [message["content"] for message in row["messages"]] == [
        "Q0", "Example.", "Q1", "You said: Q1 (None)", "Q2", "You said: Q2 (None)",
    ]  # fmt: skip
    assert [message.get("weight") for message in row["messages"]] == [None, 0, None, None, None, None]
    assert [message["content"] for message in teacher.asked[1]["messages"]][:4] == [
        "Q0", "Example.", "Q1", "You said: Q1 (None)",
    ]  # fmt: skip
    assert row["teacher"]["completion_tokens"] == 10


def test_answers_that_are_cut_off_empty_or_refused_are_dropped_and_counted(run, teacher, questions):
    answers = {
        "0": said("Half a", "length"), "1": said("  "), "2": said(None, refusal="I will not."),
        "3": said("x", "content_filter"), "4": said(None, "tool_calls"), "5": said("I'm sorry, but I can’t."),
        "6": said(None, "length"),
    }  # fmt: skip
    teacher.answer = lambda body: answers.get(body["messages"][-1]["content"][9:-1]) or echo(body)
    rows = run(questions, max_dropped_fraction=0.5)
    assert run.report["dropped"] == {"cut-off": 2, "refused": 2, "empty": 1, "no-text": 1}
    assert (len(rows), run.report["look_like_refusals"]) == (14, 1)
    assert {item["reason"] for item in run.report["examples"]} == {
        "cut-off", "refused", "empty", "no-text", "looks-like-refusal",
    }  # fmt: skip
    count = len(teacher.asked)
    kept = run(questions, max_dropped_fraction=0.5, on_truncated="keep")
    assert texts(kept)[0] == "Half a"
    assert (len(kept), run.report["cut_off_kept"]) == (15, 1)
    assert len(teacher.asked) == count, "what is kept of the answers is decided without asking again"


def test_too_many_lost_rows_fail_the_stage_and_their_answers_stay(run, teacher, questions):
    teacher.answer = lambda body: said("Half a", "length")
    with pytest.raises(UserError, match=r"20 of 20 rows are lost \(cut-off\)(.|\n)*answer.max_dropped_fraction: 20 of"):
        run(questions)
    assert not (run.folder / artifacts.ANSWERS).exists()
    assert len(run(questions, on_truncated="keep")) == 20
    assert len(teacher.asked) == 20


def test_a_prompt_that_is_refused_as_a_request_is_lost_and_the_others_are_not(run, teacher, questions):
    run(questions, max_prompts=1)
    teacher.faults = [status(400, "maximum context length is 8 tokens")] * 2
    rows = run(questions, concurrent=1)
    assert (len(rows), run.report["dropped"]) == (18, {"rejected": 2})
    assert "maximum context length" in run.report["examples"][0]["detail"]


def test_thoughts_are_kept_only_when_asked_for(run, teacher, questions):
    teacher.answer = lambda body: said("Two.", reasoning_content="One and one.")
    (plain,) = run(questions, max_prompts=1)
    (thinking,) = run(questions, max_prompts=1, keep_reasoning=True)
    assert plain["messages"][-1] == {"role": "assistant", "content": "Two."}
    assert thinking["messages"][-1] == {"role": "assistant", "content": "Two.", "reasoning_content": "One and one."}
    assert len(teacher.asked) == 1


def test_another_address_is_the_same_teacher_and_another_model_is_not(run, teacher, questions):
    first = run(questions)
    moved = TeacherServer(names=("teacher", "other"))
    try:
        assert run(questions, url=moved.url) == first
        assert moved.asked == []
        run(questions, url=moved.url, model="other")
        assert len(moved.asked) == 20
    finally:
        moved.close()


def test_rows_that_are_no_prompts_fail_before_anything_is_asked(run, teacher, tmp_path):
    tool = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}}]}
    rows = [{"messages": [{"role": "user", "content": "Hi?"}]}, {"messages": []},
            {"messages": [{"role": "user", "content": "Hi?"}, tool]}]  # fmt: skip
    file = lines(tmp_path / "mixed.jsonl", rows)
    with pytest.raises(
        UserError, match=r"mixed.jsonl:2(.|\n)*mixed.jsonl:3: the row has tools(.|\n)*nothing was asked"
    ):
        run(file)
    assert teacher.asked == []
    assert len(run(file, on_bad_rows="drop")) == 1
    assert run.report["bad_prompts"] == {"role-order": 1, "has-tools": 1}


def worker(run_dir: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "tunerun.worker", str(run_dir), "answer"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stage_that_is_stopped_or_killed_asks_only_what_is_missing(run, teacher, questions, number):
    step = run.step(questions, concurrent=3)
    artifacts.write_json(run.folder / artifacts.PLAN, {"schema": 1, "name": "x", "steps": [steps.to_json(step)]})
    teacher.delay = 0.05
    process = worker(run.folder)
    journal = run.folder / artifacts.ANSWER_JOURNAL
    while not journal.exists() or journal.read_bytes().count(b"\n") < 6:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == (-9 if number == signal.SIGKILL else 75), errors
    if number != signal.SIGKILL:
        assert "rows are still to be answered" in errors
    known = journal.read_bytes().count(b"\n")
    assert 6 <= known < 20
    teacher.delay, before = 0.0, len(teacher.asked)
    rows = run(questions, concurrent=3)
    assert len(teacher.asked) == before + 20 - known
    whole = journal.with_name("elsewhere")
    assert rows == type(run)(whole, teacher)(questions)


def test_the_same_bytes_come_of_one_go_and_of_many(run, teacher, questions, tmp_path):
    for count in (5, 12, 20):
        run(questions, max_prompts=count, concurrent=4)
    whole = type(run)(tmp_path / "whole", teacher)
    whole(questions, concurrent=1)
    for name in (artifacts.ANSWERS, artifacts.ANSWER_REPORT):
        assert (run.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_journal_of_another_run_is_taken_over(run, teacher, questions, tmp_path):
    from dataclasses import replace

    from tunerun.data.answer import stage

    rows = run(questions)
    step = replace(run.step(questions), journal=str(run.folder / artifacts.ANSWER_JOURNAL))
    stage.run(step, tmp_path / "other")
    assert len(teacher.asked) == 20
    assert [json.loads(line) for line in (tmp_path / "other" / artifacts.ANSWERS).read_text().splitlines()] == rows
