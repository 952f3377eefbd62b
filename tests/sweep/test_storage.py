"""Where a search keeps its trials: damaged, half written, gone, or somebody else's file."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.sweep.test_search import asked, finish, opened, outcome
from tunerun.config.schema import OptunaConfig
from tunerun.errors import StageError, UserError
from tunerun.sweep.search import Search
from tunerun.sweep.storage import JOURNAL


@pytest.fixture
def journal(tmp_path):
    """The journal of a search of two trials, of which one is done."""
    search = opened(tmp_path, asked(1))
    finish(search)
    return tmp_path / JOURNAL


def refused(folder: Path, **settings: object) -> str:
    with pytest.raises(UserError) as caught:
        opened(folder, asked(2), **settings)
    (problem,) = caught.value.problems
    assert problem.fix
    return str(problem)


def test_a_damaged_line_is_named(journal):
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:3], b'{"op_code": 4, "wor\x00\xff\n', *lines[3:]]))
    assert f"{journal}:4: is damaged" in refused(journal.parent)


@pytest.mark.parametrize(("content", "line"), [('{"op_code": 99}\n[]\n', ":2"), ('{"op_code": 0}\n', "")])
def test_records_that_say_nothing_are_damage_too(journal, content, line):
    journal.write_text(content)
    assert f"{journal}{line}: is damaged" in refused(journal.parent)


def test_half_a_line_of_a_writer_that_was_killed_is_removed(journal):
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "worker')
    search = opened(journal.parent, asked(2))
    assert journal.read_bytes().startswith(whole)
    assert len(finish(search)) == 1
    assert [row.status for row in opened(journal.parent, asked(2)).known()] == ["done", "done"]
    assert all(json.loads(line) for line in journal.read_bytes().splitlines())


@pytest.mark.parametrize("content", ["my notes", "my notes\nand half a line", '{"mine": 1}\nmore'])
def test_a_file_of_somebody_elses_stays_as_it_is(tmp_path, content):
    (tmp_path / "notes.journal").write_text(content)
    refused(tmp_path, storage=str(tmp_path / "notes.journal"))
    assert (tmp_path / "notes.journal").read_text() == content


def test_a_folder_in_its_place_is_said_to_be_one(tmp_path):
    (tmp_path / "my.journal").mkdir()
    with pytest.raises(UserError, match=r"my\.journal cannot be opened: Is a directory"):
        opened(tmp_path, asked(1), storage=str(tmp_path / "my.journal"))


@pytest.mark.parametrize("storage", [None, "{}/shared/our.journal", "sqlite:///{}/our.db"])
def test_what_is_only_looked_at_is_not_made(tmp_path, storage):
    settings = {} if storage is None else {"storage": storage.format(tmp_path), "study": "ours"}
    with pytest.raises(UserError, match="is not there"):
        Search(asked(1), OptunaConfig(**settings), tmp_path).start(create=False)
    assert not list(tmp_path.iterdir())


def test_a_search_that_is_not_in_the_storage_is_not_begun_by_looking(tmp_path):
    settings = {"storage": f"{tmp_path}/our.journal"}
    opened(tmp_path / "one", asked(1), **settings, study="ours")
    before = (tmp_path / "our.journal").read_bytes()
    Search(asked(1), OptunaConfig(**settings, study="ours"), tmp_path).start(create=False)
    with pytest.raises(UserError, match="theirs is not among the searches"):
        Search(asked(1), OptunaConfig(**settings, study="theirs"), tmp_path).start(create=False)
    assert (tmp_path / "our.journal").read_bytes() == before


def test_a_data_base_that_is_damaged_is_told(tmp_path):
    (tmp_path / "our.db").write_text("no data base at all, but long enough to be taken for one" * 20)
    with pytest.raises(UserError, match=r"our\.db cannot be opened: .*file is not a database"):
        opened(tmp_path, asked(1), storage=f"sqlite:///{tmp_path}/our.db")


@pytest.mark.parametrize("module", ["search", "storage"])
def test_no_private_part_of_optuna_is_used(module):
    tree = ast.parse((ROOT / f"src/tunerun/sweep/{module}.py").read_text(encoding="utf-8"))
    accesses = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("_")]
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    foreign = [node.attr for node in accesses if ast.unparse(node.value) != "self" and not node.attr.endswith("__")]
    assert not foreign
    assert not [name for name in names if name.startswith("_")]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'{"op_code": 4, "worker_id": "a\n', "line 1 is no record"),
        (b"", "it holds less than before, so that trial 1 would be run twice"),
        (None, "No such file or directory"),
    ],
)
def test_a_journal_that_breaks_while_trials_run_is_told(tmp_path, content, what):
    search = opened(tmp_path, asked(3))
    trial = search.next()
    assert trial is not None
    search.ended(trial, outcome(trial, eval_loss=1.0))
    assert search.next() is not None
    (tmp_path / JOURNAL).unlink()
    if content is not None:
        (tmp_path / JOURNAL).write_bytes(content)
    with pytest.raises(StageError, match=rf"{JOURNAL} broke while the search was going on: {what}\. Put it back"):
        search.next()


def test_a_data_base_that_breaks_while_trials_run_is_told(tmp_path):
    search = opened(tmp_path, asked(3), storage=f"sqlite:///{tmp_path}/our.db")
    trial = search.next()
    assert trial is not None
    (tmp_path / "our.db").write_bytes(b"no data base" * 400)
    with pytest.raises(StageError, match=r"our\.db broke .*: .*file is not a database"):
        search.ended(trial, outcome(trial, eval_loss=1.0))


def test_what_is_used_of_optuna_beyond_its_manual_is_there():
    """`Trial` made by hand and a storage asked directly, for which pyproject bounds the version."""
    import optuna

    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name="ours")
    study_id = storage.get_study_id_from_name("ours")
    mine = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING, user_attrs={"owner": "me"})
    trial = optuna.Trial(study, storage.create_new_trial(study_id, mine))
    assert trial.number == 0
    assert trial.user_attrs == {"owner": "me"}
    again = optuna.Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, 0))
    assert again.suggest_float("x", 0, 1) == study.trials[0].params["x"]
    assert study.trials[0].state == optuna.trial.TrialState.RUNNING
