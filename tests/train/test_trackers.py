from __future__ import annotations

import json
import os
import signal
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.train.runs import before_step, make_run, metrics, train_step
from tunerun.config.schema import TrackConfig
from tunerun.errors import MissingExtra, Preempted
from tunerun.train.metrics import model_flops_utilisation
from tunerun.train.stage import run
from tunerun.train.trackers import JsonLines

NAMES = ["wandb", "trackio", "mlflow", "swanlab", "tensorboard"]


def _step(name: str) -> Any:
    return train_step(max_steps=2, track=TrackConfig(**{name: True}))


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_tracker_says_which_extra_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=rf"tunerun\[{name}\]"):
        run(_step(name), make_run(tmp_path))


def test_lines_of_lost_steps_go_when_training_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = JsonLines(path, after_step=0)
    for step in (1, 2, 3):
        first.log(step, {"loss": float(step)})
    first.close()
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    second = JsonLines(path, after_step=2)
    second.log(3, {"loss": 9.0})
    second.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": 9.0},
    ]


def test_trackio_keeps_the_numbers_and_goes_on_with_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio", reason="needs trackio")
    utils = pytest.importorskip("trackio.utils")
    monkeypatch.setattr(utils, "TRACKIO_DIR", tmp_path / "store")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "store")
    out = make_run(tmp_path / "run")
    run(_step("trackio"), out)
    with sqlite3.connect(tmp_path / "store" / "tunerun.db") as base:
        rows = base.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert {name for name, _, _ in rows} == {"test-run"}
    found = {step: json.loads(values)["train/loss"] for step, _, values in ((r[1], r[0], r[2]) for r in rows)}
    assert found == {line["step"]: line["loss"] for line in metrics(out)}


def test_mlflow_keeps_the_numbers_in_the_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="needs mlflow")
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = make_run(tmp_path / "run")
    run(_step("mlflow"), out)
    client = tracking.MlflowClient(f"sqlite:///{out}/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("tunerun").experiment_id])
    assert (found.info.run_name, found.info.status) == ("test-run", "FINISHED")
    assert found.data.params["train.learning_rate"] == "0.01"
    history = {point.step: point.value for point in client.get_metric_history(found.info.run_id, "train/loss")}
    assert history == {line["step"]: line["loss"] for line in metrics(out)}


def test_swanlab_works_offline_in_the_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("swanlab", reason="needs swanlab")
    for name in ("SWANLAB_MODE", "SWANLAB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    out = make_run(tmp_path / "run")
    run(_step("swanlab"), out)
    (log,) = (out / "swanlab").glob("run-*/*.swanlab")
    assert b"train/loss" in log.read_bytes()


def test_ctrl_c_still_saves_with_a_tracker_that_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("swanlab", reason="needs swanlab")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    out = make_run(tmp_path / "run")
    with before_step(1, lambda: os.kill(os.getpid(), signal.SIGINT)), pytest.raises(Preempted, match="after step 2"):
        run(train_step(track=TrackConfig(swanlab=True)), out)


def test_wandb_works_offline_in_the_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = make_run(tmp_path / "run")
    run(_step("wandb"), out)
    (log,) = (out / "wandb").glob("offline-run-*/*.wandb")
    assert b"train/loss" in log.read_bytes()


def test_the_use_of_the_device_is_a_share_of_its_peak(tmp_path: Path) -> None:
    assert model_flops_utilisation(1000.0, 6e9, 2e13) == pytest.approx(0.3)
    out = make_run(tmp_path)
    run(replace(train_step(max_steps=2), flops_per_token=1e6, device_flops=1e11), out)
    for line in metrics(out):
        assert line["mfu"] == pytest.approx(line["tokens_per_second"] * 1e6 / 1e11)
        assert line["peak_memory_bytes"] > 0
