import pytest

from tunerun import artifacts
from tunerun.errors import ExitCode
from tunerun.launch.process import Ended
from tunerun.launch.ranks import STUCK
from tunerun.run import statuses


def write(run_dir, name, code, *, error=None, time=1.0, again=False, echo=False):
    ended = {"exit_code": int(code), "error": error, "time": time, "again": again, "echo": echo}
    status = {"schema": 1, **ended, "artifacts": []}
    artifacts.write_json(run_dir / artifacts.STATUS / f"{name}.json", status)


def outcome(run_dir, exit_code=1, *, stopped=False, fault=None):
    return statuses.outcome(run_dir, "train", Ended(exit_code=exit_code, seconds=1.0, fault=fault), stopped=stopped)


@pytest.mark.parametrize(
    ("ended", "stopped", "code", "died"),
    [
        (-9, False, ExitCode.STAGE_FAILED, True),
        (-15, True, ExitCode.PREEMPTED, False),
        (1, False, ExitCode.STAGE_FAILED, True),
    ],
)
def test_an_end_without_a_status_is_judged_by_the_process(tmp_path, ended, stopped, code, died):
    found = outcome(tmp_path, ended, stopped=stopped)
    assert (found.code, found.made, found.died, found.shown) == (code, (), died, False)
    assert found.error


def test_a_status_counts_more_than_the_code_of_a_launcher(tmp_path):
    write(tmp_path, "train", ExitCode.PREEMPTED, error="stopped")
    found = outcome(tmp_path)
    assert (found.code, found.error, found.died) == (ExitCode.PREEMPTED, "stopped", False)


def test_of_several_ranks_the_one_that_failed_first_is_heard(tmp_path):
    write(tmp_path, "train", ExitCode.STAGE_FAILED, error="connection closed by peer", time=2.0)
    write(tmp_path, "train-1", ExitCode.DONE, time=0.5)
    write(tmp_path, "train-10", ExitCode.USER_ERROR, error="no such module", time=1.0)
    found = outcome(tmp_path)
    assert (found.code, found.error, found.shown) == (ExitCode.USER_ERROR, "no such module", False)


def test_a_rank_that_was_lost_counts_more_than_what_the_others_say_of_it(tmp_path):
    write(tmp_path, "train", ExitCode.STAGE_FAILED, error="connection closed by peer")
    found = outcome(tmp_path, fault="rank 1 (process 7) died")
    assert (found.code, found.error, found.died) == (ExitCode.STAGE_FAILED, "rank 1 (process 7) died", True)


def test_what_an_earlier_execution_left_is_removed_for_all_ranks_of_a_stage_only(tmp_path):
    for name in ("train", "train-1", "eval"):
        write(tmp_path, name, ExitCode.DONE)
    statuses.remove(tmp_path, "train")
    assert [file.name for file in (tmp_path / artifacts.STATUS).iterdir()] == ["eval.json"]


def test_what_only_repeats_another_ranks_failure_is_not_the_cause_however_early(tmp_path):
    write(tmp_path, "train", ExitCode.USER_ERROR, error="no such module", time=2.0)
    write(tmp_path, "train-1", ExitCode.STAGE_FAILED, error="rank 0: no such module", time=1.0, echo=True)
    assert outcome(tmp_path).code == ExitCode.USER_ERROR


def test_a_failure_that_was_told_counts_more_than_that_the_others_had_to_be_killed(tmp_path):
    write(tmp_path, "train-1", ExitCode.USER_ERROR, error="no such module")
    assert outcome(tmp_path, fault=STUCK).error == "no such module"


@pytest.mark.parametrize("fault", [None, STUCK])
def test_a_rank_may_ask_for_another_try(tmp_path, fault):
    write(tmp_path, "train", ExitCode.STAGE_FAILED, error="connection closed by peer", time=2.0)
    write(tmp_path, "train-1", ExitCode.STAGE_FAILED, error="out of memory in step 3", again=True)
    found = outcome(tmp_path, fault=fault)
    assert (found.again, found.died, found.error) == (True, False, "out of memory in step 3")
