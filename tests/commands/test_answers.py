"""`stages=[answer]` as it is typed: a teacher's answers, and no model."""

from __future__ import annotations

from tests.teacher_server import TeacherServer
from tunerun import cli
from tunerun.errors import ExitCode


def test_answers_are_collected_shown_and_replayed_without_a_model(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "questions.txt").write_text("Who are you?\nWhat is two and two?\n")
    server = TeacherServer()
    try:
        ask = ("stages=[answer]", "answer.prompts=questions.txt", "answer.model=teacher", f"answer.url={server.url}")
        assert cli.dispatch([*ask, "run_dir=first"]) == ExitCode.DONE
    finally:
        server.close()
    assert len((tmp_path / "first/answer/answers.jsonl").read_text().splitlines()) == 2
    card = (tmp_path / "first/README.md").read_text()
    assert "Answers of `teacher`, collected by tunerun" in card
    for text in (card, (tmp_path / "first/report.html").read_text()):
        assert "None" not in text
    assert cli.dispatch(["replay", "first", "run_dir=second"]) == ExitCode.DONE
    assert cli.dispatch(["lock", "first", "mine"]) == ExitCode.DONE
    capfd.readouterr()
    assert cli.dispatch(["show", "second"]) == ExitCode.DONE
    assert "base" not in capfd.readouterr().out
    assert cli.dispatch(["plan", "+recipe=mine"]) == ExitCode.DONE
