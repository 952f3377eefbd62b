"""A node that follows: what its ranks are given, and what its log keeps."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time

import scenario

from tunerun import artifacts, redact
from tunerun.config.schema import AnswerConfig
from tunerun.errors import ExitCode
from tunerun.launch import command
from tunerun.launch.nodes import Leader, Meeting
from tunerun.run import follower

BODY = ("MIIEvQIBADANplanted0", "G9w0BAQEFAASCplanted1")
PEM = "\n".join(("-----BEGIN PRIVATE KEY-----", *BODY, "-----END PRIVATE KEY-----"))


def meeting():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return Meeting(host="127.0.0.1", port=port, nodes=2, is_leader=False)


def test_ranks_do_not_get_the_key_of_a_teacher_and_no_secret_reaches_the_log(small, run_dir, tmp_path, monkeypatch):
    small()
    monkeypatch.setenv("TUNERUN_TEST_BEHAVIOUR", "train:leak-all")
    monkeypatch.setenv("TUNERUN_TEST_NAMES", "TEACHER,NOTE,DEPLOY")
    monkeypatch.setenv("DATABASE_URL", "")
    monkeypatch.setenv("TEACHER", "plain-looking-value")
    monkeypatch.setenv("NOTE", "he said plain-looking-value")
    monkeypatch.setenv("DEPLOY", PEM)
    made = dataclasses.replace(
        scenario.config(tmp_path / "rows.txt", tmp_path / "model"), answer=AnswerConfig(api_key_env="TEACHER")
    )
    place = meeting()
    leader, status = Leader(place, str(run_dir)), artifacts.STATUS + "/train.json"
    (run_dir / status).unlink()

    def lead():
        leader.launch("train", bool)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (run_dir / status).is_file():
            time.sleep(0.05)
        time.sleep(0.5)
        leader.end(1)

    leading = threading.Thread(target=lead)
    leading.start()
    assert follower.follow(place, made) == ExitCode.STAGE_FAILED
    leading.join(60)

    text = (run_dir / "logs/train-node1.log").read_text()
    assert f"using he said {redact.MARK} as NOTE" in text
    assert "DEPLOY=[redacted]" in text
    assert "as TEACHER" not in text
    assert not any(secret in text for secret in (*BODY, "plain-looking-value"))


def test_ranks_that_hang_are_ended_when_those_of_the_leader_are_gone_and_started_again(
    small, run_dir, tmp_path, monkeypatch
):
    small()
    monkeypatch.setenv("TUNERUN_TEST_BEHAVIOUR", "train:sleep")
    monkeypatch.setattr(follower, "LOST_SECONDS", 0.5)
    stand_in = command.command
    monkeypatch.setattr(command, "command", lambda *a, **b: dataclasses.replace(stand_in(*a, **b), ranks=True))
    place, ready = meeting(), run_dir / "logs/ready"
    leader, faults = Leader(place, str(run_dir)), []

    def lead():
        for _ in range(2):
            ready.unlink(missing_ok=True)
            leader.launch("train", bool)
            until(ready.exists)
            # Its own ranks died, or were killed for the sake of one that did.
            leader.over()
            until(lambda: leader.fault() is not None)
            faults.append(leader.fault())
        leader.end(1)

    leading, began = threading.Thread(target=lead), time.monotonic()
    leading.start()
    config = scenario.config(tmp_path / "rows.txt", tmp_path / "model")
    assert follower.follow(place, config) == ExitCode.STAGE_FAILED
    leading.join(60)
    # Each would sleep for a minute.
    assert time.monotonic() - began < 40
    assert len(faults) == 2 and all(fault.endswith("have ended, and those of this node did not") for fault in faults)


def until(condition):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not condition():
        time.sleep(0.05)
    assert condition()
