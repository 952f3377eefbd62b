"""`tunerun -m`: every trial in a directory of its own, and a failure is only its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.run import scenario
from tunerun import cli
from tunerun.commands import sweep
from tunerun.errors import ExitCode, UserError

BASE = ("-m", "model.path=model", "method=lora", "stages=[data,train]")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder with a model and data for the stand-in stages."""
    scenario.use_stand_ins(monkeypatch.setattr)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights").write_text("weights")
    (tmp_path / "rows.txt").write_text("rows")
    (tmp_path / "broken.txt").write_bytes(b"\xff\xfe broken")
    return tmp_path


def swept(folder: Path) -> tuple[Path, list[dict[str, object]]]:
    (sweep_dir,) = (folder / "outputs/sweeps").iterdir()
    return sweep_dir, json.loads((sweep_dir / "results.json").read_text(encoding="utf-8"))["trials"]


def test_each_point_has_a_directory_and_a_line_in_the_results(folder, capfd):
    assert cli.dispatch([*BASE, "data.path=rows.txt", "train.learning_rate=1e-3,1e-4"]) == ExitCode.DONE
    sweep_dir, trials = swept(folder)
    assert [(trial["trial"], trial["overrides"], trial["exit_code"]) for trial in trials] == [
        (0, ["train.learning_rate=0.001"], 0),
        (1, ["train.learning_rate=0.0001"], 0),
    ]
    weights = [(sweep_dir / str(number) / "adapter/weights.txt").read_text() for number in (0, 1)]
    assert "0.001" in weights[0]
    assert "0.0001" in weights[1]
    assert capfd.readouterr().out.splitlines()[-1] == f"sweep: {sweep_dir}"


def test_a_trial_that_fails_does_not_stop_the_others(folder, capfd):
    assert cli.dispatch([*BASE, "data.path=broken.txt,rows.txt"]) == ExitCode.STAGE_FAILED
    sweep_dir, trials = swept(folder)
    assert [trial["exit_code"] for trial in trials] == [1, 0]
    assert not (sweep_dir / "0/adapter").exists()
    assert (sweep_dir / "1/adapter").is_dir()
    assert capfd.readouterr().out.splitlines()[-1] == f"sweep: {sweep_dir}"


def test_a_signal_stops_the_sweep_after_the_trial_it_hit(folder, monkeypatch, capfd):
    monkeypatch.setattr(sweep.runner, "execute", lambda plan, config: ExitCode.PREEMPTED)
    assert cli.dispatch([*BASE, "data.path=rows.txt", "seed=1,2,3"]) == ExitCode.PREEMPTED
    _, trials = swept(folder)
    assert [trial["exit_code"] for trial in trials] == [75]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.path=rows.txt", "method.rank=8,many"], "'many' is not a whole number"),
        (["data.path=rows.txt,missing.txt"], "there is no file or folder missing.txt"),
        (["data.path=rows.txt", "run_dir=here", "seed=1,2"], "each trial has a directory of its own"),
    ],
)
def test_nothing_starts_when_one_point_is_wrong(arguments, message, folder):
    with pytest.raises(UserError, match=message):
        cli.dispatch([*BASE, *arguments])
    assert not (folder / "outputs").exists()
