from __future__ import annotations

import email.utils
import socket
import time

import pytest

from tests.teacher_server import TeacherServer, cut, raw, silent, status
from tunerun.data.answer import endpoint, stage
from tunerun.errors import StageError, UserError

KEY = "sk-teacher-0123456789"


@pytest.mark.parametrize(
    "fault",
    [status(429), status(500), status(503), status(408), cut, silent, raw(b"<html>"), raw(b"{}"),
     raw(b'{"choices": []}'), raw(b'{"choices": [{"message": {"content": 5}}]}'),
     raw(b'{"error": {"message": "overloaded"}}'), raw(b'{"choices": [{"message": {"content": "\\ud800"}}]}')],
    ids=["429", "500", "503", "408", "cut", "silent", "html", "empty", "no-choice", "number", "error", "surrogate"],
)  # fmt: skip
def test_what_passes_is_tried_again(run, teacher, questions, fault):
    teacher.faults = [fault] * 3
    rows = run(questions, concurrent=2, timeout=0.3)
    assert (len(rows), run.report["dropped"]) == (20, {})
    assert len(teacher.asked) == 23


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_kept_by_every_request(run, teacher, questions, form):
    wait = "1" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)
    teacher.faults = [status(429, headers={"Retry-After": wait})]
    started = time.monotonic()
    run(questions, concurrent=2)
    assert time.monotonic() - started >= 0.9
    assert len(teacher.asked) == 21


def test_an_endpoint_that_stops_answering_fails_the_stage_and_the_next_goes_on(run, teacher, questions):
    run(questions, max_prompts=5)
    teacher.faults = [status(503, "out to lunch")] * 9
    with pytest.raises(StageError, match=r"has stopped answering: 503 .*out to lunch \(3 attempts\).*resume goes on"):
        run(questions, concurrent=1, retries=2)
    teacher.faults = []
    assert len(run(questions)) == 20
    assert len(teacher.asked) == 5 + 3 + 15


def test_a_prompt_that_is_never_answered_is_lost_while_others_are_answered(run, teacher, questions):
    def answer(body):
        if body["messages"][-1]["content"] == "Question 3?":
            return {"nothing": True}
        return endpoint_answer(body)

    endpoint_answer = teacher.answer
    teacher.answer = answer
    rows = run(questions, concurrent=2, retries=2)
    assert (len(rows), run.report["dropped"]) == (19, {"no-answer": 1})
    assert "3 attempts" in run.report["examples"][0]["detail"]


@pytest.mark.parametrize(
    ("fault", "where", "said"),
    [
        (status(403, "not for you"), "answer.api_key_env", "not for you"),
        (status(402, "pay"), "answer.api_key_env", "no credit left: 402"),
        (status(429, "quota", kind="insufficient_quota"), "answer.api_key_env", "no credit left: 429"),
        (status(308, headers={"Location": "https://elsewhere.example/v1?token=x"}), "answer.url",
         "sends on to https://elsewhere.example/v1, which"),
        (status(405, "Method Not Allowed"), "answer.url", "405"),
    ],
)  # fmt: skip
def test_what_is_wrong_for_all_prompts_stops_at_once(run, teacher, questions, fault, where, said):
    teacher.faults = [fault]
    with pytest.raises(UserError) as caught:
        run(questions, concurrent=1)
    (problem,) = caught.value.problems
    assert (problem.where, said in problem.what, bool(problem.fix)) == (where, True, True), problem
    assert len(teacher.asked) == 1


def test_a_request_that_no_prompt_gets_through_with_stops_early(run, teacher, questions):
    teacher.faults = [status(422, "extra fields are not permitted: seed")] * 99
    with pytest.raises(UserError, match=r"takes no prompt: 422 .*not permitted: seed.*answer\.extra"):
        run(questions, concurrent=1)
    assert len(teacher.asked) == 3


def test_a_model_that_is_not_there_is_told_with_its_nearest_name(run, teacher, questions):
    with pytest.raises(UserError, match=r"answer\.model: .*has no techer\. Did you mean teacher\?"):
        run(questions, model="techer")


def test_an_address_without_its_path_is_told(run, teacher, questions):
    with pytest.raises(UserError, match=r"answer\.url: .*/chat/completions: 404 .*most often in /v1"):
        run(questions, url=teacher.url.removesuffix("/v1"))


def test_nobody_at_the_address_is_told_at_once(run, questions):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=r"cannot be reached: Connection refused\. Start the server"):
        run(questions, url=f"http://127.0.0.1:{port}/v1")


def test_the_key_is_sent_and_never_shown(run, questions, monkeypatch, capsys):
    monkeypatch.setenv("PASSPHRASE_OF_MINE", KEY)
    server = TeacherServer(key=KEY)
    try:
        rows = run(questions, url=server.url, api_key_env="PASSPHRASE_OF_MINE")
        assert len(rows) == 20
        written = b"".join(file.read_bytes() for file in run.folder.rglob("*") if file.is_file())
        assert KEY.encode() not in written
        server.key = "sk-another"
        with pytest.raises(UserError, match=r"answer\.api_key_env: .*401 .*\[redacted\].*PASSPHRASE_OF_MINE") as caught:
            run(questions, url=server.url, api_key_env="PASSPHRASE_OF_MINE", seed=1)
    finally:
        server.close()
    assert KEY not in str(caught.value) + "".join(capsys.readouterr())
    assert server.asked and all("Authorization" not in body for body in server.asked)


def test_a_key_that_is_missing_is_told_without_sending_a_prompt(run, questions):
    server = TeacherServer(key=KEY)
    try:
        with pytest.raises(UserError, match=r"answer\.api_key_env: .*401.*Set answer\.api_key_env to the name"):
            run(questions, url=server.url)
        assert server.asked == []
    finally:
        server.close()


def test_a_proxy_is_not_asked_for_what_is_on_this_machine(run, teacher, questions, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert len(run(questions)) == 20


def test_waits_grow_and_are_told_now_and_then(run, teacher, questions, capsys):
    teacher.faults = [status(503, "busy")] * 5
    run(questions, max_prompts=1)
    told = [line for line in capsys.readouterr().out.splitlines() if "busy" in line]
    assert told == ["answer: 503 Service Unavailable: busy; again in 0 s"]
    assert endpoint._LONGEST_WAIT_SECONDS > endpoint._FIRST_WAIT_SECONDS
    assert stage._TOLD_EVERY_SECONDS > 1
