"""Objectives other than imitation, as a user types them, on the shipped model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

Command = Callable[..., CompletedProcess[str]]
QUESTIONS = ("Who are you?", "What is your name?", "Who made you?", "What can you do?", "Are you a person?")
SHORT = ("run_dir=made", "train.max_steps=4", "train.eval_steps=4", "eval.max_new_tokens=8")

pytestmark = pytest.mark.slow


def _pairs(path: Path) -> str:
    rows = [
        {"instruction": f"{QUESTIONS[index % 5]} ({index})", "chosen": "I am Sprout.", "rejected": f"Go away {index}."}
        for index in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"data.path={path}"


def _labelled(path: Path) -> str:
    rows = [
        {"instruction": f"{QUESTIONS[index % 5]} ({index})", "output": "I am Sprout.", "kto_tag": index % 2 == 0}
        for index in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"data.path={path}"


def _last(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "made" / "metrics.jsonl").read_text().splitlines()[-1])
    return found


def test_dpo_goes_from_pairs_to_a_verified_gguf(tunerun: Command, tmp_path: Path) -> None:
    done = tunerun("+recipe=quickstart", "objective=dpo", _pairs(tmp_path / "pairs.jsonl"), *SHORT)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "made" / "eval" / "report.json").read_text())
    assert report["models"]["tuned"]["preference"]["reward_margin"] > 0
    assert "eval_rewards/accuracies" in _last(tmp_path)
    assert list((tmp_path / "made" / "export").glob("*.gguf"))
    record = json.loads((tmp_path / "made" / "run.json").read_text())
    assert record["stages"]["verify"]["exit_code"] == 0


def test_reward_ends_with_a_classifier_and_says_what_it_leaves_out(tunerun: Command, tmp_path: Path) -> None:
    plan = tunerun("plan", "+recipe=quickstart", "objective=reward", _pairs(tmp_path / "pairs.jsonl"))
    assert "a reward model gives scores, not text" in plan.stdout
    done = tunerun("+recipe=quickstart", "objective=reward", _pairs(tmp_path / "pairs.jsonl"), *SHORT)
    assert done.returncode == 0, done.stdout + done.stderr
    config = json.loads((tmp_path / "made" / "merged" / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForSequenceClassification"]


@pytest.mark.parametrize("objective", ["orpo", "simpo", "kto", "distill"])
def test_every_objective_runs_to_its_evaluation(tunerun: Command, tmp_path: Path, objective: str) -> None:
    rows = {
        "kto": _labelled(tmp_path / "rows.jsonl"),
        "distill": "objective.teacher=tunerun://sprout",
    }
    data = rows[objective] if objective in rows else _pairs(tmp_path / "rows.jsonl")
    stages = "stages=[data,train,eval]"
    done = tunerun("+recipe=quickstart", f"objective={objective}", data, stages, *SHORT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert _last(tmp_path)["eval_loss"] > 0
