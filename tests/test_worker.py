"""A stage in its own process: what it leaves for the runner when it ends, however it ends."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.run import scenario
from tunerun import artifacts
from tunerun.base_model import BaseModel, write_base
from tunerun.config.schema import AnswerConfig, MethodConfig
from tunerun.plan import plan as plans
from tunerun.plan import steps

WORKER = Path(scenario.HERE) / "drive_worker.py"


@pytest.fixture
def run_dir(tmp_path):
    """A run directory with a plan of stand-in stages."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.safetensors").write_text("weights")
    (tmp_path / "rows.txt").write_text("rows")
    folder = tmp_path / "run"
    made = scenario.config(tmp_path / "rows.txt", tmp_path / "model")
    artifacts.write_json(folder / artifacts.PLAN, plans.to_json(scenario.plan(folder, made)))
    (folder / artifacts.LOGS).mkdir()
    return folder


def start(run_dir, stage, behaviour="") -> subprocess.Popen[str]:
    environment = {**os.environ, "TUNERUN_TEST_BEHAVIOUR": f"{stage}:{behaviour}" if behaviour else ""}
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(run_dir), stage],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(run_dir, stage, behaviour="") -> tuple[int, str, dict[str, object]]:
    process = start(run_dir, stage, behaviour)
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr, status(run_dir, stage)


def status(run_dir, stage) -> dict[str, object]:
    return json.loads((run_dir / artifacts.STATUS / f"{stage}.json").read_text())


def test_a_stage_that_is_done_lists_what_it_made(run_dir):
    code, _, told = run(run_dir, "model")
    assert (code, told["exit_code"], told["error"], told["schema"]) == (0, 0, None, 1)
    assert told["artifacts"] == [
        {
            "kind": "model-record",
            "path": "model.json",
            "sha256": artifacts.sha256(run_dir / "model.json"),
            "bytes": (run_dir / "model.json").stat().st_size,
        }
    ]


@pytest.mark.parametrize(
    ("behaviour", "code", "message"),
    [
        ("user-error", 2, "train.jsonl:17: is not JSON."),
        ("stage-error", 1, "the disk is full"),
        ("gate-error", 3, "logits differ"),
    ],
)
def test_each_kind_of_error_has_its_code_and_no_traceback(run_dir, behaviour, code, message):
    returned, stderr, told = run(run_dir, "data", behaviour)
    assert (returned, told["exit_code"], told["error"], told["artifacts"]) == (code, code, message, [])
    assert stderr.strip() == f"tunerun: {message}"


def test_a_file_that_cannot_be_read_is_a_message(run_dir, tmp_path):
    (tmp_path / "rows.txt").unlink()
    returned, stderr, told = run(run_dir, "data")
    assert returned == told["exit_code"] == 1
    assert "No such file" in told["error"]
    assert "Traceback" not in stderr


def test_a_file_that_cannot_grow_is_told_with_what_to_do(run_dir):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    line = [sys.executable, str(WORKER), str(run_dir), "data"]
    done = subprocess.run(line, preexec_fn=limit, capture_output=True, text=True, timeout=60)
    assert "data: a file would be larger than the shell allows. Raise `ulimit -f`." in done.stderr


def test_a_fault_of_ours_keeps_its_traceback_in_the_log(run_dir, tmp_path):
    (tmp_path / "rows.txt").write_bytes(b"\xff\xfe")
    returned, stderr, told = run(run_dir, "data")
    assert returned == told["exit_code"] == 1
    assert told["error"].startswith("UnicodeDecodeError: ")
    assert "Traceback" in stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_stage_as_resumable(run_dir, number):
    process = start(run_dir, "data", "sleep")
    deadline = time.monotonic() + 60
    while not (run_dir / "logs/ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == status(run_dir, "data")["exit_code"] == 75
    assert status(run_dir, "data")["error"] == f"stopped by {number.name}"
    assert list(run_dir.glob(".*partial*")) == []


def test_the_key_that_a_stage_asks_with_is_not_in_its_status(run_dir, monkeypatch):
    monkeypatch.setenv("TEACHER", "plain-looking-value")
    monkeypatch.setenv("TUNERUN_TEST_NAMES", "TEACHER")
    monkeypatch.setenv("DATABASE_URL", "")
    plan = json.loads((run_dir / artifacts.PLAN).read_text())
    asks = steps.AnswerStep(answer=AnswerConfig(api_key_env="TEACHER"), vars={}, on_bad_rows="fail", hub="hf", seed=1)
    plan["steps"].append(steps.to_json(asks))
    artifacts.write_json(run_dir / artifacts.PLAN, plan)
    _, _, told = run(run_dir, "answer", "leak-all")
    assert told["error"] == "RuntimeError: [redacted]"


LOAD = """
import json, sys
from pathlib import Path
from tunerun import worker
from tunerun.plan import steps
folder = Path(sys.argv[1])
step = steps.from_json(json.loads((folder / "step.json").read_text()))
left_out = worker.unneeded(step, folder)
with worker.leaving_out(left_out):
    worker.load_stage(step.stage)
found = [name for name in worker.SELDOM_NEEDED if name in sys.modules]
assert not set(left_out) & set(found)
# What peft asks when it puts an adapter on.
from peft.import_utils import is_bnb_available
print(worker.misses(folder, step.stage), "bitsandbytes" in found, is_bnb_available())
"""


@pytest.mark.parametrize(
    ("stage", "kind", "found"), [("train", "lora", False), ("train", "qlora", True), ("eval", "lora", False)]
)
def test_bitsandbytes_is_imported_only_for_quantised_weights(tmp_path, stage, kind, found):
    """peft would import it, and torch's compiler with it, in every training."""
    pytest.importorskip("bitsandbytes")
    made = scenario.config(tmp_path / "rows.txt", tmp_path / "model")
    step = next(step for step in scenario.plan(tmp_path, made).steps if step.stage == "train")
    step = replace(step, method=MethodConfig(kind=kind))
    if stage == "eval":
        parts = {"model": step.model, "eval": step.eval, "placement": step.placement, "seed": 1}
        step = steps.EvalStep(**parts, adapter="adapter", tuned=None, chat=True)
    artifacts.write_json(tmp_path / "step.json", steps.to_json(step))
    artifacts.write_json(tmp_path / artifacts.PLAN, {"steps": [steps.to_json(step)]})
    (tmp_path / "base").mkdir()
    artifacts.write_json(tmp_path / "base" / "config.json", {})
    write_base(tmp_path, BaseModel(folder=tmp_path / "base", path="org/tiny", revision=None, sha256="0"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    argv = [sys.executable, "-c", LOAD, str(tmp_path)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-3:] == [str(found)] * 3
