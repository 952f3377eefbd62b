"""`tunerun -m hydra/sweeper=tunerun_optuna`: trials are proposed, judged, ended early, and gone on with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.run import scenario
from tunerun import cli
from tunerun.commands import drive
from tunerun.commands import trial as own_share
from tunerun.config.resolve import resolve
from tunerun.errors import ExitCode, StageError, UserError
from tunerun.run import record, rundir
from tunerun.sweep.search import Search

BASE = (
    "-m",
    "model.path=model",
    "data.path=rows.txt",
    "stages=[data,train]",
    "data.eval_rows=1",
    "train.eval_steps=1",
    "train.max_steps=8",
)
SEARCH = (*BASE, "hydra/sweeper=tunerun_optuna", "train.learning_rate=tag(log,interval(1e-5,1e-1))")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder with a model and data for the stand-in stages."""
    scenario.use_stand_ins(monkeypatch.setattr)
    monkeypatch.chdir(tmp_path)
    scenario.fill(tmp_path)
    return tmp_path


def swept(folder: Path) -> tuple[Path, list[dict]]:
    (sweep_dir,) = (folder / "outputs/sweeps").iterdir()
    return sweep_dir, json.loads((sweep_dir / "results.json").read_text(encoding="utf-8"))["trials"]


def test_a_search_tries_values_in_the_range_and_writes_its_table(folder, capfd):
    assert cli.dispatch([*SEARCH, "method.rank=4,8", "sweep.trials=4"]) == ExitCode.DONE
    sweep_dir, trials = swept(folder)
    assert [trial["rank"] for trial in trials] == [1, 2, 3, 4]
    losses = [trial["metrics"]["eval_loss"] for trial in trials]
    assert losses == sorted(losses)
    assert {trial["parameters"]["method.rank"] for trial in trials} <= {"4", "8"}
    for trial in trials:
        config = rundir.load_config(sweep_dir / str(trial["trial"]))
        assert config.train.learning_rate == float(trial["parameters"]["train.learning_rate"])
        assert str(config.method.rank) == trial["parameters"]["method.rank"]
    page = (sweep_dir / "results.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 3
    assert "What eval_loss depends on" in page
    capfd.readouterr()
    assert cli.dispatch(["sweep", "best", str(sweep_dir), "winner"]) == ExitCode.DONE
    best = resolve(["+recipe=winner"]).config
    assert repr(best.train.learning_rate) == trials[0]["parameters"]["train.learning_rate"]
    assert best.track.group is None


def test_a_recipe_chooses_the_sweeper_and_what_it_varies(folder):
    (folder / "recipes").mkdir()
    (folder / "recipes/mine.yaml").write_text(
        """
defaults:
  - override /hydra/sweeper: tunerun_optuna
  - _self_
hydra:
  sweeper:
    sampler: random
    seed: 5
sweep:
  trials: 3
  params:
    train.learning_rate: {low: 1e-5, high: 1e-1, log: true}
    method: {choices: [lora, dora]}
    seed: {low: 1, high: 9}
"""
    )
    assert cli.dispatch([*BASE, "+recipe=mine", "seed=7"]) == ExitCode.DONE
    sweep_dir, trials = swept(folder)
    assert len(trials) == 3
    assert all(trial["parameters"].keys() == {"train.learning_rate", "method"} for trial in trials)
    assert {rundir.load_config(sweep_dir / str(number)).seed for number in range(3)} == {7}
    # One run of the same recipe has nothing to vary.
    assert cli.dispatch([*BASE[1:], "+recipe=mine"]) == ExitCode.DONE


def test_a_pruned_trial_is_neither_failed_nor_resumable(folder, capfd):
    wanted = ["hydra.sweeper.pruner=asha", "hydra.sweeper.reduction_factor=2", "sweep.trials=4"]
    assert cli.dispatch([*SEARCH, *wanted]) == ExitCode.DONE
    sweep_dir, trials = swept(folder)
    pruned = [trial for trial in trials if trial["status"] == "pruned"]
    assert 1 <= len(pruned) <= 3
    assert trials[0]["status"] == "done"
    run = sweep_dir / str(pruned[0]["trial"])
    assert record.read(run).stages["train"].status == "pruned"
    assert not (run / "adapter").exists()
    assert "pruned" in (run / "report.html").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="was ended by its sweep"):
        cli.dispatch(["resume", str(run)])
    assert "other trials of the sweep are better" in capfd.readouterr().out


def test_a_trial_that_fails_is_one_of_the_trials(folder, monkeypatch):
    real = drive.runner.execute

    def execute(plan, **options):
        if plan.run_dir.endswith("/1"):
            monkeypatch.setenv("TUNERUN_TEST_BEHAVIOUR", "train:stage-error")
        code = real(plan, **options)
        monkeypatch.delenv("TUNERUN_TEST_BEHAVIOUR", raising=False)
        return code

    monkeypatch.setattr(drive.runner, "execute", execute)
    assert cli.dispatch([*SEARCH, "sweep.trials=3"]) == ExitCode.STAGE_FAILED
    sweep_dir, trials = swept(folder)
    assert [trial["status"] for trial in sorted(trials, key=lambda trial: trial["trial"])] == ["done", "failed", "done"]
    # It stays so: a search that is over runs nothing again.
    assert cli.dispatch(["resume", str(sweep_dir)]) == ExitCode.STAGE_FAILED
    assert len(record.read(sweep_dir / "1").invocations) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method.rank=interval(-3,8)"], "method.rank .*must be >= 1"),
        (["method=lora,dorra"], "there is no method named `dorra`"),
        (["hydra.sweeper.smapler=tpe"], "there is no key `smapler`"),
        (["hydra/sweeper=tunerun_optna"], "Did you mean tunerun_optuna"),
        (["hydra/sweeper=basic"], "is none of tunerun's"),
        (["hydra/launcher=joblib"], r"tunerun does not read it.* sweep\.jobs=2"),
        (["hydra.launcher.n_jobs=2"], r"tunerun does not read it.* sweep\.jobs=2"),
        (["hydra.sweep.dir=here"], "tunerun does not read it.* hydra/sweeper"),
        (["train.lerning_rate=interval(0,1)"], "there is no key `lerning_rate`"),
        (["hydra.sweeper.pruner=asha", "sweep.metric=train_loss"], "ends trials by eval_loss"),
        (
            ["hydra.sweeper.pruner=asha", "train.eval_steps=null"],
            r"train\.eval_steps: is null.* hydra\.sweeper\.pruner=asha compares",
        ),
        (["hydra.sweeper.pruner=median", "train.eval_steps=null,1"], r"train\.eval_steps: is null"),
        (["train.eval_steps=null"], r"sweep\.metric: a trial would have no eval_loss"),
        (["sweep.metric=[eval_loss,gguf_bytes]"], r"sweep\.metric: a trial would have no gguf_bytes"),
    ],
)
def test_nothing_starts_when_the_search_makes_no_sense(arguments, message, folder):
    with pytest.raises(UserError, match=message):
        cli.dispatch([*SEARCH, "sweep.trials=2", *arguments])
    assert not (folder / "outputs").exists()


def test_a_sweeper_goes_with_m_only(folder):
    with pytest.raises(UserError, match="A choice of hydra/sweeper goes with -m"):
        cli.dispatch([*BASE[1:], "hydra/sweeper=tunerun_optuna"])


def test_trials_at_a_time_overlap_with_their_share_of_the_cores(folder, monkeypatch, capfd):
    monkeypatch.setattr(own_share.machine, "facts", _facts_with_cores(own_share.machine.facts(), 6))
    monkeypatch.setenv("TUNERUN_TEST_BEHAVIOUR", "train:progress")
    assert cli.dispatch([*BASE, "train.learning_rate=1e-2,1e-3,1e-4", "sweep.jobs=3"]) == ExitCode.DONE
    sweep_dir, trials = swept(folder)
    assert {trial["status"] for trial in trials} == {"done"}
    spans = [record.read(sweep_dir / str(number)).stages["train"] for number in range(3)]
    assert max(span.started for span in spans) < min(span.finished for span in spans)
    assert {rundir.load_config(sweep_dir / str(number)).hardware.threads for number in range(3)} == {2}
    out = capfd.readouterr().out
    assert {line[:4] for line in out.splitlines() if "[2/3] data: done" in line} == {"0 | ", "1 | ", "2 | "}


def _facts_with_cores(facts, cores):
    import dataclasses

    return lambda *_: dataclasses.replace(facts, cores=cores)


def test_each_trial_at_a_time_has_gpus_of_its_own(folder, monkeypatch):
    from types import SimpleNamespace

    def needing(processes: int) -> SimpleNamespace:
        placement = SimpleNamespace(device="cuda", processes=processes, devices=())
        return SimpleNamespace(plan=SimpleNamespace(train=SimpleNamespace(placement=placement)))

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert [own_share.gpus(needing(2), slot, 2) for slot in (0, 1)] == [
        {"CUDA_VISIBLE_DEVICES": "4,5"},
        {"CUDA_VISIBLE_DEVICES": "6,7"},
    ]
    assert own_share.gpus(needing(2), 0, 1) == {}
    with pytest.raises(UserError, match=re.escape("need 6; there are 4. Set sweep.jobs=2.")):
        own_share.gpus(needing(2), 0, 3)


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.run import scenario
from tunerun import cli
scenario.use_stand_ins()
sys.exit(cli.dispatch(sys.argv[2:]))
"""


def program(folder: Path, *arguments: str, behaviour: str = "") -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TUNERUN_TEST_BEHAVIOUR": behaviour}
    argv = [sys.executable, "-c", PROGRAM, str(ROOT), *arguments]
    return subprocess.Popen(argv, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_search_goes_on_with_the_trial_it_was_at(folder, how):
    search = [*SEARCH, "sweep.trials=3", "hydra.sweeper.pruner=median"]
    stopped = program(folder, *search, behaviour="train:sleep")
    deadline = time.monotonic() + 60
    while not list(folder.glob("outputs/sweeps/*/0/logs/ready")):
        assert time.monotonic() < deadline and stopped.poll() is None
        time.sleep(0.05)
    stopped.send_signal(how)
    stopped.communicate(timeout=60)
    assert stopped.returncode == (-signal.SIGKILL if how == signal.SIGKILL else ExitCode.PREEMPTED)
    (sweep_dir,) = (folder / "outputs/sweeps").iterdir()
    first = rundir.load_config(sweep_dir / "0").train.learning_rate
    time.sleep(0.5)

    assert cli.dispatch(["resume", str(sweep_dir)]) == ExitCode.DONE
    _, trials = swept(folder)
    assert sorted(trial["trial"] for trial in trials) == [0, 1, 2]
    assert {trial["status"] for trial in trials} <= {"done", "pruned"}
    assert rundir.load_config(sweep_dir / "0").train.learning_rate == first
    assert len(record.read(sweep_dir / "0").invocations) == 2


def test_a_search_whose_journal_is_gone_or_damaged_is_not_begun_anew(folder, capfd):
    assert cli.dispatch([*SEARCH, "sweep.trials=1"]) == ExitCode.DONE
    sweep_dir, _ = swept(folder)
    journal = sweep_dir / "search.journal"
    content = journal.read_text(encoding="utf-8")
    journal.write_text(content.replace('"op_code"', '"op', 1), encoding="utf-8")
    with pytest.raises(UserError, match=r"search\.journal:1: is damaged.*sweep best"):
        cli.dispatch(["resume", str(sweep_dir)])
    assert cli.dispatch(["sweep", "best", str(sweep_dir), "winner"]) == ExitCode.DONE
    journal.unlink()
    with pytest.raises(UserError, match=r"search\.journal is not there"):
        cli.dispatch(["resume", str(sweep_dir)])
    assert not journal.exists()


@pytest.mark.parametrize("moment", [(drive.runner, "execute"), (Search, "goes_on")], ids=["ended", "measured"])
def test_a_journal_that_breaks_while_a_trial_runs_ends_the_sweep_which_goes_on_when_it_is_back(folder, moment):
    whole = []

    def breaking(*arguments, **named):
        try:
            return real(*arguments, **named)
        finally:
            if not whole:
                (journal,) = folder.glob("outputs/sweeps/*/search.journal")
                whole.append(journal.read_bytes())
                journal.unlink()
                journal.mkdir()

    real = getattr(*moment)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*moment, breaking)
        with pytest.raises(StageError, match=r"search\.journal broke .*: Is a directory.*tunerun resume"):
            cli.dispatch([*SEARCH, "sweep.trials=3", "hydra.sweeper.pruner=median"])
    (sweep_dir,) = (folder / "outputs/sweeps").iterdir()
    (sweep_dir / "search.journal").rmdir()
    (sweep_dir / "search.journal").write_bytes(whole[0])
    assert cli.dispatch(["resume", str(sweep_dir)]) == ExitCode.DONE
    assert sorted(trial["trial"] for trial in swept(folder)[1]) == [0, 1, 2]


def test_two_sweeps_share_a_search(folder):
    shared = ["hydra.sweeper.storage=shared.journal", "hydra.sweeper.study=ours", "sweep.trials=6"]
    both = [program(folder, *SEARCH, *shared) for _ in range(2)]
    for process in both:
        process.communicate(timeout=120)
    assert [process.returncode for process in both] == [0, 0]
    done = [int(path.parent.name) for path in folder.glob("outputs/sweeps/*/*/run.json")]
    assert sorted(done) == [0, 1, 2, 3, 4, 5]
    tables = [json.loads(path.read_text())["trials"] for path in folder.glob("outputs/sweeps/*/results.json")]
    assert all(len(trials) == 6 for trials in tables)


def test_a_sweep_tells_what_came_of_another_processes_trial_since_it_ended(folder, monkeypatch, capfd):
    shared = [*SEARCH, "hydra.sweeper.storage=shared.journal", "hydra.sweeper.study=ours", "sweep.trials=2"]
    real = drive.runner.execute

    def execute(plan, **options):
        # The other one takes the second trial, and ends while this one is at the first.
        assert plan.run_dir.endswith("/0")
        program(folder, *shared).communicate(timeout=120)
        return real(plan, **options)

    monkeypatch.setattr(drive.runner, "execute", execute)
    assert cli.dispatch(shared) == ExitCode.DONE
    (other,) = (path.parent.parent for path in folder.glob("outputs/sweeps/*/1/run.json"))
    written = json.loads((other / "results.json").read_text(encoding="utf-8"))["trials"]
    assert {trial["trial"]: trial["status"] for trial in written} == {0: "running", 1: "done"}

    capfd.readouterr()
    assert cli.dispatch(["sweep", "show", str(other)]) == ExitCode.DONE
    assert states(capfd.readouterr().out) == {"0": "done", "1": "done"}
    # A storage that went away is not begun anew by looking for it.
    (folder / "shared.journal").rename(folder / "away.journal")
    assert cli.dispatch(["sweep", "show", str(other)]) == ExitCode.DONE
    out, err = capfd.readouterr()
    assert states(out) == {"0": "running", "1": "done"}
    assert "shared.journal is not there" in err
    assert not (folder / "shared.journal").exists()
    # In another folder its recipe and its storage may be others.
    monkeypatch.chdir(folder / "model")
    assert cli.dispatch(["sweep", "show", str(other)]) == ExitCode.DONE
    out, err = capfd.readouterr()
    assert states(out) == {"0": "running", "1": "done"}
    assert "as when this sweep ended" in err


def states(table: str) -> dict[str, str]:
    """Returns the state of each trial by its number, from a table on the terminal."""
    rows = [line.split() for line in table.splitlines()]
    return {row[0]: row[rows[0].index("state")] for row in rows[1:]}


def test_the_best_of_a_search_alone_goes_through_the_last_stages(folder):
    wanted = ["stages=[data,train,merge]", "sweep.finish_best=true", "sweep.trials=3"]
    assert cli.dispatch([*SEARCH, *wanted]) == ExitCode.DONE
    sweep_dir, trials = swept(folder)
    best = trials[0]["trial"]
    assert [number for number in range(3) if (sweep_dir / str(number) / "merged").exists()] == [best]
