"""The README's commands, as a user types them: from data to a GGUF file that answers."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.conftest import ROOT

Command = Callable[..., CompletedProcess[str]]
SHORT = ("train.max_steps=3", "eval.max_new_tokens=8")


def record(run_dir: Path) -> dict:
    return json.loads((run_dir / "run.json").read_text(encoding="utf-8"))


def adapter_hash(run_dir: Path) -> str:
    made = record(run_dir)["stages"]["train"]["artifacts"]
    return next(item["sha256"] for item in made if item["path"] == "adapter")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One short quickstart run that the tests of this file look at."""
    import os
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, "-m", "tunerun", "+recipe=quickstart", "run_dir=first", *SHORT],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().splitlines()[-1] == f"run: {folder / 'first'}"
    (folder / "stdout.txt").write_text(done.stdout, encoding="utf-8")
    return folder / "first"


def test_everything_the_contract_names_is_there(finished):
    expected = [
        "config.yaml", "plan.json", "run.json", "metrics.jsonl", "report.html", "README.md", "logs/train.log",
        "data/manifest.json", "data/tokens.u32", "data/report.json", "data/preview.txt", "data/eval/manifest.json",
        "adapter/adapter_model.safetensors", "merged/model.safetensors", "eval/report.json", "verify/report.json",
        "export/quickstart-f16.gguf", "export/quickstart-q4_k_m.gguf", "export/Modelfile", "export/serve.json",
        "export/Modelfile.go-template", "export/chat_template.jinja",
    ]  # fmt: skip
    assert [name for name in expected if not (finished / name).exists()] == []


def test_the_summary_says_what_came_out_and_what_to_do_next(finished):
    text = (finished.parent / "stdout.txt").read_text(encoding="utf-8")
    for part in ("loss on", "before,", "after", "> Who are you?", "tunerun chat", "tunerun serve", "verified:"):
        assert part in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("run: ")) <= 100


def test_every_gate_passed(finished):
    report = json.loads((finished / "verify" / "report.json").read_text(encoding="utf-8"))
    assert report["passed"] is True
    # Without llama.cpp's server its rendering cannot be compared.
    proved = [gate for gate in report["gates"] if not gate["name"].startswith("llama-server:")]
    assert {gate["verdict"] for gate in proved} == {"pass"}
    assert len(proved) >= 11


def test_the_same_command_again_gives_the_same_bits(finished, tunerun, tmp_path):
    done = tunerun("+recipe=quickstart", "run_dir=second", "stages=[data,train]", *SHORT)
    assert done.returncode == 0, done.stderr
    assert adapter_hash(tmp_path / "second") == adapter_hash(finished)


def test_a_finished_run_is_skipped_whole(finished, tunerun):
    before = record(finished)
    done = tunerun("+recipe=quickstart", "run_dir=first", *SHORT, cwd=finished.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("unchanged, skipped") == len(before["stages"])
    assert {name: stage["finished"] for name, stage in before["stages"].items()} == {
        name: stage["finished"] for name, stage in record(finished)["stages"].items()
    }


def test_changed_training_keys_are_refused_by_name(finished, tunerun):
    done = tunerun("+recipe=quickstart", "run_dir=first", *SHORT, "train.learning_rate=1e-3", cwd=finished.parent)
    assert done.returncode == 2
    assert "train.learning_rate" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_late_stage_runs_again_alone(finished, tunerun, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    done = tunerun("+recipe=quickstart", "run_dir=copy", *SHORT, "export.gguf.types=[q8_0]", "verify.level=off")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("unchanged, skipped") == 5
    assert sorted(file.name for file in (copy / "export").glob("*.gguf")) == ["quickstart-q8_0.gguf"]


def test_the_run_can_be_talked_to_through_a_pipe(finished):
    import os
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "tunerun", "chat", str(finished), "--max-new-tokens", "8"],
        input="Who are you?\n你是谁？\n",
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert all(line.strip() for line in done.stdout.splitlines())


@pytest.mark.shared
@pytest.mark.parametrize(
    "name",
    [
        "glaive_toolcall_en_demo.json",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("alpaca_zh_demo.json", "gsm8k_train.csv")),
    ],
)
def test_real_data_needs_no_other_override_than_its_path(name, shared_dir, tunerun, tmp_path):
    done = tunerun("+recipe=quickstart", f"data.path={shared_dir / 'data' / name}", "run_dir=run", *SHORT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "export" / "quickstart-q4_k_m.gguf").stat().st_size > 1e6


def test_an_adapter_made_elsewhere_is_merged_exported_and_verified(finished, tunerun, tmp_path):
    done = tunerun(
        "+recipe=quickstart", "stages=[merge,export,verify]", f"model.adapter={finished / 'adapter'}", "run_dir=other"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    merged = [record(run)["stages"]["merge"]["artifacts"][0]["sha256"] for run in (finished, tmp_path / "other")]
    assert merged[0] == merged[1]


def test_a_model_that_was_not_trained_here_is_evaluated(tunerun, tmp_path):
    done = tunerun("+recipe=quickstart", "stages=[data,eval]", "run_dir=run", "eval.max_new_tokens=8")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "run" / "eval" / "report.json").read_text(encoding="utf-8"))
    assert set(report["models"]) == {"base"}
    assert report["models"]["base"]["loss"] > 0


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("bad.jsonl", '{"instruction": "a", "output": "b"}\n{"instruction": \n', "bad.jsonl:2"),
        ("empty.json", "", "empty.json"),
        ("columns.csv", "alpha,beta\n1,2\n", "columns.csv"),
    ],
)
def test_broken_data_is_one_clear_error_with_exit_code_2(name, text, expected, tunerun, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    done = tunerun("+recipe=quickstart", f"data.path={name}", "run_dir=run")
    assert done.returncode == 2
    assert expected in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "run" / "adapter").exists()
    assert done.stdout.rstrip().splitlines()[-1].startswith("run: ")


def test_a_question_and_answer_table_is_understood(tunerun, tmp_path):
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answer"])
        writer.writerows([[f"What is {n} plus {n}?", str(2 * n)] for n in range(30)])
    done = tunerun("data", "+recipe=quickstart", "data.path=rows.csv", "run_dir=run")
    assert done.returncode == 0, done.stderr
    assert "columns: 30 rows" in done.stdout
