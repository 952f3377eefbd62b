import dataclasses
import fcntl
import io
import json
import threading
import time

import pytest
import reports
import scenario
import yaml
from scenario import FULL

from tests.train.old_checkpoints import to_schema_2
from tests.train.runs import make_run, train_step
from tunerun import artifacts
from tunerun.config.schema import AnswerConfig, PublishConfig, ServeConfig
from tunerun.errors import ExitCode, UserError
from tunerun.formats.verdicts import VERIFY_REPORT
from tunerun.plan import delivery
from tunerun.plan.placement import Placement
from tunerun.run import record, rundir, runner
from tunerun.train.stage import run as train


def statuses(run_dir):
    return {stage: entry.status for stage, entry in record.read(run_dir).stages.items()}


def test_a_run_leaves_config_plan_record_report_card_and_logs(small, run_dir, capfd):
    assert small(stages=FULL) == ExitCode.DONE

    entry = record.read(run_dir)
    assert entry.status == "done"
    assert set(statuses(run_dir).values()) == {"done"}
    assert entry.stages["export"].artifacts == (artifacts.describe(run_dir, "gguf", "export/small-f16.gguf"),)
    assert artifacts.read_json(run_dir / "plan.json")["steps"][0]["stage"] == "model"
    assert rundir.load_config(run_dir).name == "small"
    assert (run_dir / "logs/train.log").read_text() == "trained\n"
    assert "<svg" not in (run_dir / "report.html").read_text()
    assert "# small" in (run_dir / "README.md").read_text()
    assert capfd.readouterr().out.splitlines()[-1] == f"run: {run_dir}"


def test_a_model_that_is_a_checkpoint_of_schema_2_is_renewed_before_a_stage_reads_it(tmp_path, monkeypatch):
    trained = make_run(tmp_path / "trained")
    train(train_step(max_steps=2, checkpoint_steps=1, ema_decay=0.9), trained)
    checkpoint = trained / "checkpoints" / "step-1"
    wanted = (checkpoint / "adapter" / artifacts.ADAPTER_WEIGHTS).read_bytes()
    to_schema_2(checkpoint)
    scenario.use_stand_ins(monkeypatch.setattr)
    scenario.fill(tmp_path)
    config = scenario.config(tmp_path / "rows.txt", tmp_path / "model")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, adapter=str(checkpoint / "adapter")))
    runner.execute(scenario.plan(tmp_path / "run", config), config=config)
    assert (checkpoint / "adapter" / artifacts.ADAPTER_WEIGHTS).read_bytes() == wanted


def test_a_finished_run_is_skipped_whole_and_at_once(small, run_dir):
    small(stages=FULL)
    before = (run_dir / "export/small-f16.gguf").stat().st_mtime_ns
    started = time.monotonic()

    assert small(stages=FULL) == ExitCode.DONE

    assert time.monotonic() - started < 1.0
    assert set(statuses(run_dir).values()) == {"skipped"}
    assert (run_dir / "export/small-f16.gguf").stat().st_mtime_ns == before
    assert len(record.read(run_dir).invocations) == 2


def test_touched_but_equal_data_is_skipped(small, run_dir, tmp_path):
    small()
    (tmp_path / "rows.txt").write_text("rows")
    assert small() == ExitCode.DONE
    assert set(statuses(run_dir).values()) == {"skipped"}


def test_a_removed_artifact_is_made_again_and_its_dependants_stay(small, run_dir):
    small(stages=FULL)
    (run_dir / "merged/model.txt").unlink()
    assert small(stages=FULL) == ExitCode.DONE
    assert statuses(run_dir) == {
        "model": "skipped",
        "data": "skipped",
        "train": "skipped",
        "merge": "done",
        "export": "skipped",
    }


def test_a_tampered_artifact_of_equal_size_is_made_again(small, run_dir):
    small()
    original = (run_dir / "adapter/weights.txt").read_text()
    (run_dir / "adapter/weights.txt").write_text(original[::-1])
    small()
    assert (run_dir / "adapter/weights.txt").read_text() == original


def test_a_changed_stage_after_train_runs_again_and_old_files_go(small, run_dir, capfd):
    small(stages=FULL, types=("f16", "q8_0"))
    assert small(stages=FULL, types=("q8_0",)) == ExitCode.DONE
    assert statuses(run_dir)["export"] == "done"
    assert statuses(run_dir)["train"] == "skipped"
    assert [path.name for path in (run_dir / "export").iterdir()] == ["small-q8_0.gguf"]
    assert "removed export/small-f16.gguf" in capfd.readouterr().out


def test_changed_training_and_data_keys_are_refused_with_old_and_new_value(small, run_dir, capfd):
    small(learning_rate=0.1)
    before = (run_dir / "run.json").read_bytes()

    with pytest.raises(UserError) as caught:
        small(learning_rate=0.2, epochs=3.0)

    where = {problem.where: problem for problem in caught.value.problems}
    assert set(where) == {"train.learning_rate", "train.epochs"}
    assert "was 0.1 and is 0.2" in where["train.learning_rate"].what
    assert "--allow train.learning_rate" in where["train.learning_rate"].fix
    assert (run_dir / "run.json").read_bytes() == before
    assert capfd.readouterr().out.splitlines()[-1] == f"run: {run_dir}"


def test_a_changed_data_file_is_refused_after_training(small, tmp_path):
    small()
    (tmp_path / "rows.txt").write_text("other rows")
    with pytest.raises(UserError, match=r"data\.path: .*rows\.txt was changed \(sha256 "):
        small()


def test_changed_base_weights_are_refused_after_training(small, tmp_path, run_dir):
    small()
    (tmp_path / "model/model.safetensors").write_text("others!")
    with pytest.raises(UserError, match=r"model\.path: came out different"):
        small()
    assert record.read(run_dir).status == "failed"


def test_moved_base_weights_are_the_same_input(small, tmp_path, run_dir):
    small()
    weights = (tmp_path / "model/model.safetensors").read_text()
    (tmp_path / "model/model.safetensors").unlink()
    (tmp_path / "model/model.safetensors").write_text(weights)
    assert small() == ExitCode.DONE
    assert statuses(run_dir)["data"] == "skipped"


@pytest.mark.parametrize("allowed", ["data.path", "data"])
def test_an_allowed_change_of_data_trains_again_with_all_that_follows(small, tmp_path, run_dir, allowed):
    small(stages=FULL)
    (tmp_path / "rows.txt").write_text("other rows")
    assert small(stages=FULL, allow=frozenset({allowed})) == ExitCode.DONE
    assert set(statuses(run_dir).values()) == {"skipped", "done"}
    assert "other rows" in (run_dir / "export/small-f16.gguf").read_text()


def test_an_allowed_key_does_not_let_another_change_through(small):
    small(learning_rate=0.1)
    with pytest.raises(UserError) as caught:
        small(learning_rate=0.2, epochs=3.0, allow=frozenset({"train.epochs"}))
    assert [problem.where for problem in caught.value.problems] == ["train.learning_rate"]


def test_data_may_change_as_long_as_nothing_was_trained(small, tmp_path, run_dir):
    small(stages=("data",))
    (tmp_path / "rows.txt").write_text("other rows")
    assert small(learning_rate=0.5) == ExitCode.DONE
    assert "other rows" in (run_dir / "adapter/weights.txt").read_text()


def test_a_failed_training_without_a_checkpoint_may_be_changed(small, monkeypatch, run_dir):
    monkeypatch.setenv("TUNERUN_TEST_BEHAVIOUR", "train:stage-error")
    assert small(learning_rate=0.1) == ExitCode.STAGE_FAILED
    monkeypatch.delenv("TUNERUN_TEST_BEHAVIOUR")
    assert small(learning_rate=0.2) == ExitCode.DONE


def test_a_stopped_training_with_a_checkpoint_may_not(small, monkeypatch, run_dir):
    monkeypatch.setenv("TUNERUN_TEST_BEHAVIOUR", "train:stage-error")
    small(learning_rate=0.1)
    (run_dir / "checkpoints/step-3").mkdir(parents=True)
    with pytest.raises(UserError, match=r"train\.learning_rate"):
        small(learning_rate=0.2)


def test_what_changes_only_bits_neither_trains_a_finished_run_again_nor_refuses_a_stopped_one(
    small, monkeypatch, run_dir
):
    monkeypatch.setenv("TUNERUN_TEST_BEHAVIOUR", "train:stage-error")
    small()
    (run_dir / "checkpoints/step-3").mkdir(parents=True)
    monkeypatch.delenv("TUNERUN_TEST_BEHAVIOUR")
    assert small(micro_batch_size=4) == ExitCode.DONE
    assert statuses(run_dir)["train"] == "done"
    assert small(micro_batch_size=2) == ExitCode.DONE
    assert statuses(run_dir)["train"] == "skipped"


def test_preparing_data_only_in_a_trained_run_changes_nothing(small, run_dir):
    small()
    assert small(stages=("data",)) == ExitCode.DONE
    assert statuses(run_dir)["data"] == "skipped"


@pytest.mark.parametrize(
    ("behaviour", "code", "said"),
    [
        ("user-error", ExitCode.USER_ERROR, "train.jsonl:17: is not JSON."),
        ("stage-error", ExitCode.STAGE_FAILED, "the disk is full"),
        ("gate-error", ExitCode.GATE_FAILED, "logits differ"),
        ("crash", ExitCode.STAGE_FAILED, "the stage was killed by SIGSEGV"),
        ("leave", ExitCode.STAGE_FAILED, "ended with code 0 and without a status"),
    ],
)
def test_a_failed_stage_ends_the_run_with_its_code(small, monkeypatch, run_dir, capfd, behaviour, code, said):
    monkeypatch.setenv("TUNERUN_TEST_BEHAVIOUR", f"data:{behaviour}")

    assert small() == code

    entry = record.read(run_dir)
    assert entry.status == "failed"
    assert statuses(run_dir) == {"model": "done", "data": "failed"}
    assert said in (entry.stages["data"].error or "")
    printed = capfd.readouterr()
    assert said in printed.err
    assert printed.out.splitlines()[-1] == f"run: {run_dir}"
    assert not list(run_dir.rglob("*.partial-*"))
    assert "failed" in (run_dir / "report.html").read_text()


def test_a_status_of_an_earlier_execution_is_not_believed(small, monkeypatch, run_dir):
    small(stages=FULL)
    (run_dir / "export/small-f16.gguf").unlink()
    monkeypatch.setenv("TUNERUN_TEST_BEHAVIOUR", "export:leave")
    assert small(stages=FULL) == ExitCode.STAGE_FAILED


def test_two_runners_do_not_share_a_run_directory(small, run_dir):
    with rundir.locked(run_dir), pytest.raises(UserError, match="is being worked in by process"):
        small()


def test_who_looks_whether_a_run_directory_is_busy_keeps_nobody_out(run_dir):
    with rundir.locked(run_dir):
        assert rundir.is_busy(run_dir)
    look = (run_dir / rundir.LOCK).open("rb")
    fcntl.flock(look, fcntl.LOCK_SH)
    threading.Timer(0.03, look.close).start()
    with rundir.locked(run_dir):
        assert rundir.is_busy(run_dir)
    assert not rundir.is_busy(run_dir)


def test_a_folder_with_other_files_is_not_taken(small, run_dir):
    run_dir.mkdir()
    (run_dir / "README.md").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        small()
    assert (run_dir / "README.md").read_text() == "mine"


def test_left_over_staging_files_are_removed(small, run_dir):
    small(stages=FULL)
    (run_dir / "export/.small.gguf.partial-1234").write_text("half")
    (run_dir / ".adapter.old-1234").mkdir()
    small(stages=FULL)
    assert not list(run_dir.rglob(".*.partial-*")) + list(run_dir.rglob(".*.old-*"))


def test_a_secret_in_the_config_is_refused_before_anything_is_written(small, monkeypatch, run_dir):
    monkeypatch.setenv("MY_API_KEY", "correct-horse-battery")
    broken = scenario.config("rows.txt", "https://someone:correct-horse-battery@hub/model")
    with pytest.raises(UserError, match=r"model\.path: holds a secret") as caught:
        runner.execute(scenario.plan(run_dir, broken), config=broken)
    assert "correct-horse" not in str(caught.value)
    assert not run_dir.exists()


def test_secrets_reach_neither_log_nor_terminal_nor_record(small, monkeypatch, run_dir, capfd):
    monkeypatch.setenv("MY_TOKEN", "correct-horse-battery")
    monkeypatch.setattr("sys.argv", ["tunerun", "data.vars.x=correct-horse-battery"])
    monkeypatch.setenv("TUNERUN_TEST_BEHAVIOUR", "train:leak")

    assert small() == ExitCode.DONE

    written = [path.read_text() for path in run_dir.rglob("*") if path.is_file()]
    assert not any("correct-horse" in text for text in [*written, *capfd.readouterr()])
    assert "connecting with [redacted] to the hub" in (run_dir / "logs/train.log").read_text()
    assert record.read(run_dir).provenance["environment"]["MY_TOKEN"] == "[redacted]"


def test_the_key_of_a_teacher_reaches_no_other_stage(run_dir, tmp_path, monkeypatch, small):
    small()
    monkeypatch.setenv("MY_TOKEN", "correct-horse-battery")
    monkeypatch.setenv("TUNERUN_TEST_BEHAVIOUR", "train:leak")
    answer = AnswerConfig(api_key_env="MY_TOKEN")
    made = dataclasses.replace(scenario.config(tmp_path / "rows.txt", tmp_path / "model"), answer=answer)
    other = tmp_path / "other"

    assert runner.execute(scenario.plan(other, made), config=made) == ExitCode.STAGE_FAILED

    assert "KeyError: 'MY_TOKEN'" in (other / "logs/train.log").read_text()


@pytest.mark.parametrize(("changed", "gone"), [("merged/model.txt", True), ("data/tokens.txt", False)])
def test_what_was_verified_is_forgotten_when_a_model_is_made_again(small, run_dir, changed, gone):
    small(stages=FULL)
    report = run_dir / VERIFY_REPORT
    artifacts.write_json(report, reports.verification())
    small(stages=FULL)
    assert report.exists()
    (run_dir / changed).unlink()
    small(stages=FULL)
    assert report.exists() != gone


def test_publish_looks_for_the_keys_that_the_config_names(small, run_dir, tmp_path, monkeypatch):
    small(stages=FULL)
    monkeypatch.setenv("TEACHER", "plain-looking-value")
    monkeypatch.setenv("SERVED", "another-plain-value")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    made = dataclasses.replace(
        scenario.config(tmp_path / "rows.txt", tmp_path / "model"),
        stages=("publish",),
        answer=AnswerConfig(api_key_env="TEACHER"),
        serve=ServeConfig(api_key_env="SERVED"),
        publish=PublishConfig(repo="someone/small", dry_run=True, artifacts=("merged",)),
    )
    model = scenario.plan(run_dir, made).steps[0]
    plan = dataclasses.replace(scenario.plan(run_dir, made), steps=(model, *delivery.steps(made, Placement())))
    for name, value in (("a", "plain-looking-value"), ("b", "another-plain-value")):
        (run_dir / f"merged/{name}.json").write_text(json.dumps({"note": value}))

    assert runner.execute(plan, config=made) == ExitCode.USER_ERROR

    log = (run_dir / "logs/publish.log").read_text()
    assert "2 problems" in log
    assert "merged/a.json" in log
    assert "merged/b.json" in log
    for name in "ab":
        (run_dir / f"merged/{name}.json").unlink()
    assert runner.execute(plan, config=made) == ExitCode.DONE


def test_the_config_comes_back_as_it_was(small, run_dir, tmp_path):
    small(learning_rate=2e-5)
    assert rundir.load_config(run_dir) == scenario.config(tmp_path / "rows.txt", tmp_path / "model", learning_rate=2e-5)


def test_a_config_that_lost_a_secret_asks_for_it(small, run_dir):
    small()
    data = yaml.safe_load((run_dir / "config.yaml").read_text())
    data["data"]["vars"]["password"] = "[redacted]"
    (run_dir / "config.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(UserError, match=r"data\.vars\.password: was \[redacted\]"):
        rundir.load_config(run_dir)


def test_what_later_ranks_wrote_past_the_runner_is_cleaned(small, run_dir, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "abcd-1234-efgh")
    small()
    log = run_dir / "logs/train-rank1.log"
    log.write_text("asked with abcd-1234-efgh\nand more\n")
    small(learning_rate=0.5, allow=frozenset({"train"}))
    assert log.read_text() == "asked with [redacted]\nand more\n"


def test_the_record_is_json_with_a_schema(small, run_dir):
    small()
    assert json.loads((run_dir / "run.json").read_text())["schema"] == 1
    assert io.StringIO((run_dir / "run.json").read_text()).readline() == "{\n"
