"""`tunerun -m`: every trial in a directory of its own, and a failure is only its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.run import scenario
from tunerun import cli
from tunerun.commands import drive
from tunerun.config.resolve import resolve
from tunerun.errors import ExitCode, UserError

BASE = ("-m", "model.path=model", "method=lora", "stages=[data,train]")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder with a model and data for the stand-in stages."""
    scenario.use_stand_ins(monkeypatch.setattr)
    monkeypatch.chdir(tmp_path)
    scenario.fill(tmp_path)
    (tmp_path / "broken.txt").write_bytes(b"\xff\xfe broken")
    return tmp_path


def swept(folder: Path) -> tuple[Path, list[dict[str, object]]]:
    (sweep_dir,) = (folder / "outputs/sweeps").iterdir()
    return sweep_dir, json.loads((sweep_dir / "results.json").read_text(encoding="utf-8"))["trials"]


def by_trial(trials: list[dict]) -> list[dict]:
    return sorted(trials, key=lambda trial: trial["trial"])


def test_each_point_has_a_directory_and_a_line_in_the_results(folder, capfd):
    assert cli.dispatch([*BASE, "data.path=rows.txt", "train.learning_rate=1e-3,1e-4"]) == ExitCode.DONE
    sweep_dir, trials = swept(folder)
    assert [(trial["trial"], trial["parameters"], trial["exit_code"]) for trial in by_trial(trials)] == [
        (0, {"train.learning_rate": "0.001"}, 0),
        (1, {"train.learning_rate": "0.0001"}, 0),
    ]
    weights = [(sweep_dir / str(number) / "adapter/weights.txt").read_text() for number in (0, 1)]
    assert "0.001" in weights[0]
    assert "0.0001" in weights[1]
    assert capfd.readouterr().out.splitlines()[-1] == f"sweep: {sweep_dir}"


def test_a_trial_that_fails_does_not_stop_the_others(folder, capfd):
    assert cli.dispatch([*BASE, "data.path=broken.txt,rows.txt"]) == ExitCode.STAGE_FAILED
    sweep_dir, trials = swept(folder)
    assert [(trial["exit_code"], trial["status"]) for trial in by_trial(trials)] == [(1, "failed"), (0, "done")]
    assert not (sweep_dir / "0/adapter").exists()
    assert (sweep_dir / "1/adapter").is_dir()
    assert capfd.readouterr().out.splitlines()[-1] == f"sweep: {sweep_dir}"


def test_a_stopped_sweep_goes_on_where_it_stopped(folder, monkeypatch, capfd):
    real, calls = drive.runner.execute, []

    def once(plan, config, **options):
        calls.append(plan.run_dir)
        return ExitCode.PREEMPTED if len(calls) == 2 else real(plan, config=config, **options)

    monkeypatch.setattr(drive.runner, "execute", once)
    assert cli.dispatch([*BASE, "data.path=rows.txt", "seed=1,2,3"]) == ExitCode.PREEMPTED
    sweep_dir, trials = swept(folder)
    assert [trial["status"] for trial in by_trial(trials)] == ["done", "preempted", "waiting"]
    assert f"go on: tunerun resume {sweep_dir.relative_to(folder)}" in capfd.readouterr().out

    assert cli.dispatch(["resume", str(sweep_dir)]) == ExitCode.DONE
    _, trials = swept(folder)
    assert [(trial["status"], trial["exit_code"]) for trial in by_trial(trials)] == [("done", 0)] * 3
    assert "unchanged, skipped" in capfd.readouterr().out


def test_a_sweep_is_resumed_as_it_was_started(folder, capfd):
    cli.dispatch([*BASE, "data.path=rows.txt", "seed=1,2"])
    sweep_dir, _ = swept(folder)
    with pytest.raises(UserError, match="resumed as it was started"):
        cli.dispatch(["resume", str(sweep_dir), "seed=3"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.path=rows.txt", "method.rank=8,many"], "'many' is not a whole number"),
        (["data.path=rows.txt,missing.txt"], "there is no file or folder missing.txt"),
        (["data.path=rows.txt", "run_dir=here", "seed=1,2"], "each trial has a directory of its own"),
        (["data.path=rows.txt", "seed=1,2", "sweep.metric=quantisation_kl"], "would have no quantisation_kl"),
        (["data.path=rows.txt", "seed=1,2", "sweep.finish_best=true"], "would have no eval_loss"),
    ],
)
def test_nothing_starts_when_one_point_is_wrong(arguments, message, folder):
    with pytest.raises(UserError, match=message):
        cli.dispatch([*BASE, *arguments])
    assert not (folder / "outputs").exists()


REPORT = {"schema": 1, "split": "eval", "rows": 2, "tokens": 9, "models": {"base": {}, "tuned": {}}}


@pytest.fixture
def measured(folder, monkeypatch):
    """A sweep of three trials whose measures are known: trial 1 is the best."""
    losses = iter([0.5, 0.25, 0.75])
    real = drive.runner.execute

    def execute(plan, config, **options):
        code = real(plan, config=config, **options)
        loss = next(losses)
        answers: list = []
        models = {name: {"loss": loss, "perplexity": 1.0, "answers": answers} for name in ("base", "tuned")}
        (Path(plan.run_dir) / "eval").mkdir(exist_ok=True)
        (Path(plan.run_dir) / "eval/report.json").write_text(json.dumps({**REPORT, "models": models}))
        return code

    monkeypatch.setattr(drive.runner, "execute", execute)
    assert cli.dispatch([*BASE, "data.path=rows.txt", "train.learning_rate=1e-2,1e-3,1e-4"]) == ExitCode.DONE
    return swept(folder)[0]


def test_the_trials_are_ranked_in_every_format(measured, capfd):
    ranked = json.loads((measured / "results.json").read_text())["trials"]
    assert [(trial["rank"], trial["trial"], trial["metrics"]["eval_loss"]) for trial in ranked] == [
        (1, 1, 0.25),
        (2, 0, 0.5),
        (3, 2, 0.75),
    ]
    csv = (measured / "results.csv").read_text().splitlines()
    assert csv[0].startswith("rank,trial,train.learning_rate,eval_loss,")
    assert csv[1].startswith("1,1,0.001,0.25,")
    assert (measured / "results.md").read_text().splitlines()[2].startswith("| 1 | 1 | 0.001 | 0.25 |")
    page = (measured / "results.html").read_text()
    assert page.count("<svg") == 2
    assert "best so far" in page
    assert "http" not in page
    cli.dispatch(["sweep", "show", str(measured)])
    shown = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown[-4:]] == ["trial", "1", "0", "2"]


def test_the_best_trial_becomes_a_recipe_that_composes_to_it(measured, capfd):
    capfd.readouterr()
    assert cli.dispatch(["sweep", "best", str(measured), "winner"]) == ExitCode.DONE
    out = capfd.readouterr().out
    assert out.splitlines()[0] == "train.learning_rate=0.001"
    assert resolve(["+recipe=winner"]).config.train.learning_rate == 0.001


@pytest.mark.parametrize("arguments", [["best"], ["worst", "x"], ["show", "x", "y"], []])
def test_a_verb_that_says_too_little_is_answered_with_its_usage(arguments):
    with pytest.raises(UserError, match="tunerun sweep best"):
        cli.dispatch(["sweep", *arguments])


def test_only_the_best_goes_through_all_stages(folder, monkeypatch, capfd):
    real = drive.runner.execute

    def execute(plan, config, **options):
        code = real(plan, config=config, **options)
        row = {"step": 1, "loss": abs(config.seed - 2), "tokens_per_second": 1.0}
        (Path(plan.run_dir) / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        return code

    monkeypatch.setattr(drive.runner, "execute", execute)
    wanted = ["stages=[data,train,merge]", "seed=1,2,3", "sweep.finish_best=true", "sweep.metric=train_loss"]
    assert cli.dispatch([*BASE[:3], "data.path=rows.txt", *wanted]) == ExitCode.DONE
    sweep_dir, trials = swept(folder)
    assert [trial["trial"] for trial in trials] == [1, 0, 2]
    assert [(sweep_dir / str(number) / "merged").exists() for number in range(3)] == [False, True, False]


def test_the_results_tell_what_the_last_stages_of_the_best_came_to(folder, monkeypatch):
    real = drive.runner.execute

    def execute(plan, config, **options):
        code = real(plan, config=config, **options)
        row = {"step": 1, "loss": abs(config.seed - 2), "tokens_per_second": 1.0}
        (Path(plan.run_dir) / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        return code

    monkeypatch.setattr(drive.runner, "execute", execute)
    monkeypatch.setenv("TUNERUN_TEST_BEHAVIOUR", "merge:stage-error")
    wanted = ["stages=[data,train,merge]", "seed=1,2", "sweep.finish_best=true", "sweep.metric=train_loss"]
    assert cli.dispatch([*BASE[:3], "data.path=rows.txt", *wanted]) == ExitCode.STAGE_FAILED
    _, trials = swept(folder)
    assert [(trial["status"], trial["exit_code"]) for trial in by_trial(trials)] == [("done", 0), ("failed", 1)]


def test_a_sweep_without_a_best_trial_offers_none(folder, capfd):
    assert cli.dispatch([*BASE, "data.path=rows.txt", "seed=1,2"]) == ExitCode.DONE
    out = capfd.readouterr().out
    assert "there is no best one: no trial that ended well has eval_loss" in out
    assert "tunerun sweep best" not in out


def test_everything_that_is_wrong_with_any_point_is_told_at_once(folder):
    with pytest.raises(UserError) as caught:
        cli.dispatch([*BASE, "data.path=rows.txt", "seed=1,2", "method.rank=0,-1"])
    assert [problem.where for problem in caught.value.problems] == ["method.rank", "method.rank"]


def test_a_sweep_is_resumed_where_it_was_started(folder, tmp_path, monkeypatch):
    cli.dispatch([*BASE, "data.path=rows.txt", "seed=1,2"])
    sweep_dir, _ = swept(folder)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="was started in"):
        cli.dispatch(["resume", str(sweep_dir)])


def test_a_glob_finds_the_options_of_config_dir_and_a_resume_finds_them_again(folder):
    (folder / "more/method").mkdir(parents=True)
    for name, rank in (("mine-a", 2), ("mine-b", 4)):
        (folder / f"more/method/{name}.yaml").write_text(f"kind: lora\nrank: {rank}\n")
    wanted = ["-m", "--config-dir", "more", "model.path=model", "data.path=rows.txt", "stages=[data,train]"]
    assert cli.dispatch([*wanted, "method=glob(mine-*)"]) == ExitCode.DONE
    sweep_dir, trials = swept(folder)
    assert [trial["parameters"] for trial in by_trial(trials)] == [{"method": "mine-a"}, {"method": "mine-b"}]
    assert cli.dispatch(["resume", str(sweep_dir)]) == ExitCode.DONE


def test_the_runs_of_a_sweep_are_listed_with_the_others(folder, capfd):
    cli.dispatch([*BASE, "data.path=rows.txt", "seed=1,2"])
    sweep_dir, _ = swept(folder)
    capfd.readouterr()
    assert cli.dispatch(["runs"]) == ExitCode.DONE
    out = capfd.readouterr().out
    assert all(f"outputs/sweeps/{sweep_dir.name}/{number}" in out for number in (0, 1))


def test_a_secret_is_refused_before_anything_is_written(folder):
    with pytest.raises(UserError, match="holds a secret"):
        cli.dispatch([*BASE, "data.path=rows.txt", "data.vars.api_key=abcdefgh12345,ijklmnop67890"])
    assert not (folder / "outputs").exists()
