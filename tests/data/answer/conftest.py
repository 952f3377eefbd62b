"""A teacher on this machine, and the stage that asks it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.teacher_server import TeacherServer
from tunerun.config.schema import AnswerConfig
from tunerun.data.answer import endpoint, stage
from tunerun.plan.steps import AnswerStep


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> Iterator[TeacherServer]:
    # Waits as in life, in a hundredth of the time.
    monkeypatch.setattr(endpoint, "_FIRST_WAIT_SECONDS", 0.01)
    server = TeacherServer()
    yield server
    server.close()


class Run:
    """Runs the stage in a folder and reads what it left."""

    def __init__(self, folder: Path, teacher: TeacherServer) -> None:
        self.folder, self.teacher = folder, teacher

    def step(self, prompts: Path, *, seed: int = 42, on_bad_rows: Any = "fail", **settings: Any) -> AnswerStep:
        given = {"url": self.teacher.url, "model": "teacher", "prompts": (str(prompts),), **settings}
        return AnswerStep(answer=AnswerConfig(**given), vars={}, on_bad_rows=on_bad_rows, hub="hf", seed=seed)

    def __call__(self, prompts: Path, **settings: Any) -> list[dict[str, Any]]:
        made = stage.run(self.step(prompts, **settings), self.folder)
        assert [item.path for item in made] == ["answer/answers.jsonl", "answer/report.json"]
        self.report = json.loads((self.folder / "answer" / "report.json").read_text(encoding="utf-8"))
        lines = (self.folder / "answer" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def run(tmp_path: Path, teacher: TeacherServer) -> Run:
    return Run(tmp_path / "run", teacher)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A text file of 20 prompts."""
    file = tmp_path / "questions.txt"
    file.write_text("".join(f"Question {number}?\n" for number in range(20)), encoding="utf-8")
    return file
