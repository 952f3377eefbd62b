"""`tunerun runs`, `show` and `resume` on runs of stand-in stages."""

from __future__ import annotations

import pytest

from tests.run import scenario
from tunerun import cli
from tunerun.errors import ExitCode, UserError

TYPED = ("model.path=model", "data.path=rows.txt", "stages=[data,train]", "run_dir=outputs/mine", "name=mine")


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    scenario.use_stand_ins(monkeypatch.setattr)
    monkeypatch.chdir(tmp_path)
    scenario.fill(tmp_path)


def test_an_empty_folder_has_no_runs_and_says_how_to_start_one(capsys):
    assert cli.dispatch(["runs"]) == ExitCode.DONE
    assert capsys.readouterr().out == "no runs in ./outputs yet. Start one: tunerun +recipe=quickstart\n"


def test_a_run_is_listed_and_shown(capfd):
    assert cli.dispatch(TYPED) == ExitCode.DONE
    capfd.readouterr()
    assert cli.dispatch(["runs"]) == ExitCode.DONE
    assert "outputs/mine" in capfd.readouterr().out
    assert cli.dispatch(["show", "outputs/mine"]) == ExitCode.DONE
    shown = capfd.readouterr().out
    assert shown.startswith("mine: done")
    assert "adapter" in shown


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"schema": 99}'])
def test_a_damaged_run_does_not_hide_the_others(content, tmp_path, capfd):
    assert cli.dispatch(TYPED) == ExitCode.DONE
    (tmp_path / "outputs/other").mkdir()
    (tmp_path / "outputs/other/run.json").write_text(content)
    capfd.readouterr()
    assert cli.dispatch(["runs"]) == ExitCode.DONE
    out = capfd.readouterr().out
    assert "outputs/mine" in out
    assert "skipped: outputs/other/run.json: " in out
    with pytest.raises(UserError, match=r"^outputs/other/run\.json: "):
        cli.dispatch(["show", "outputs/other"])


@pytest.mark.parametrize("content", ["{", '{"schema": 99}'])
@pytest.mark.parametrize("stage", ["eval", "verify"])
def test_a_damaged_report_of_a_run_is_told(stage, content, tmp_path, capfd):
    assert cli.dispatch(TYPED) == ExitCode.DONE
    report = tmp_path / "outputs/mine" / stage / "report.json"
    report.parent.mkdir(exist_ok=True)
    report.write_text(content)
    capfd.readouterr()
    assert cli.dispatch(["runs"]) == ExitCode.DONE
    # Gates are not among what is listed.
    assert ("skipped" if stage == "eval" else "done") in capfd.readouterr().out
    with pytest.raises(UserError, match=rf"{stage}/report\.json: "):
        cli.dispatch(["show", "outputs/mine"])


def test_a_failed_run_goes_on_where_it_stopped(monkeypatch, capfd):
    monkeypatch.setenv("TUNERUN_TEST_BEHAVIOUR", "train:stage-error")
    assert cli.dispatch(TYPED) == ExitCode.STAGE_FAILED
    monkeypatch.delenv("TUNERUN_TEST_BEHAVIOUR")
    capfd.readouterr()
    assert cli.dispatch(["resume", "outputs/mine"]) == ExitCode.DONE
    assert capfd.readouterr().out.splitlines()[-1].endswith("outputs/mine")


def test_a_changed_key_of_a_trained_run_needs_to_be_allowed():
    cli.dispatch(TYPED)
    with pytest.raises(UserError, match=r"train\.learning_rate"):
        cli.dispatch(["resume", "outputs/mine", "train.learning_rate=0.5"])
    allowed = ["resume", "outputs/mine", "train.learning_rate=0.5", "--allow", "train.learning_rate"]
    assert cli.dispatch(allowed) == ExitCode.DONE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resume"], "name the directory of a run"),
        (["resume", "nothing"], "^nothing: is not the directory of a run: it is not there. `tunerun runs`"),
        (["resume", "model"], "^model: is not the directory of a run"),
        (["resume", "rows.txt"], "^rows.txt: is not the directory of a run"),
        (["resume", "a", "b"], "and nothing else"),
        (["resume", "a", "--allow"], "--allow needs a value"),
        (["resume", "a", "run_dir=b"], "run_dir cannot be changed"),
        (["show", "nothing"], "^nothing: is not the directory of a run"),
        (["show"], "name the directory of a run"),
        (["runs", "nothing"], "^nothing: is not a folder"),
        (["runs", "a", "b"], "name one folder"),
    ],
)
def test_what_is_no_run_is_refused_by_its_own_name(arguments, message):
    with pytest.raises(UserError, match=message):
        cli.dispatch(arguments)


@pytest.mark.parametrize("verb", ["show", "lock", "replay", "chat"])
def test_a_sweep_named_for_a_run_is_told_from_it(verb, tmp_path):
    (tmp_path / "swept").mkdir()
    (tmp_path / "swept" / "sweep.json").write_text("{}")
    with pytest.raises(UserError, match=r"swept: is .* Name (a|one of its) trial"):
        cli.dispatch([verb, str(tmp_path / "swept")])


def test_a_wrong_override_of_a_resumed_run_is_refused():
    cli.dispatch(TYPED)
    with pytest.raises(UserError, match=r"Did you mean epochs"):
        cli.dispatch(["resume", "outputs/mine", "train.epoch=2"])
    with pytest.raises(UserError, match="has several values"):
        cli.dispatch(["resume", "outputs/mine", "train.epochs=2,3"])


def test_runs_are_chosen_by_state_and_word_and_sorted_by_time(monkeypatch, capfd):
    assert cli.dispatch(TYPED) == ExitCode.DONE
    monkeypatch.setenv("TUNERUN_TEST_BEHAVIOUR", "train:stage-error")
    assert cli.dispatch([*TYPED[:3], "run_dir=outputs/broken", "name=broken"]) == ExitCode.STAGE_FAILED
    capfd.readouterr()

    def listed(*arguments: str) -> list[str]:
        assert cli.dispatch(["runs", *arguments]) == ExitCode.DONE
        return [line.split()[-1] for line in capfd.readouterr().out.splitlines()[1:]]

    assert listed() == ["outputs/broken", "outputs/mine"]
    assert listed("--state", "done") == ["outputs/mine"]
    assert listed("--like", "BROKEN") == ["outputs/broken"]
    assert sorted(listed("--sort", "took")) == ["outputs/broken", "outputs/mine"]
    assert cli.dispatch(["runs", "--like", "nothing"]) == ExitCode.DONE
    assert capfd.readouterr().out == "none of the 2 runs in outputs is like that\n"


@pytest.mark.parametrize(("arguments", "hint"), [(["--state", "don"], "done"), (["--sort", "los"], "loss")])
def test_a_mistyped_state_or_order_is_answered_with_the_near_ones(arguments, hint):
    with pytest.raises(UserError, match=hint):
        cli.dispatch(["runs", *arguments])
