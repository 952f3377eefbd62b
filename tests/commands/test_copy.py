"""`tunerun copy` and `tunerun recipes`."""

from __future__ import annotations

import pytest

from tunerun import cli, paths
from tunerun.config.resolve import resolve
from tunerun.errors import UserError


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_copy_is_the_same_recipe_under_its_new_name(capsys):
    assert cli.dispatch(["copy", "quickstart", "mine"]) == 0
    assert capsys.readouterr().out == "recipes/mine.yaml: change it, and run it with tunerun +recipe=mine\n"
    assert resolve(["+recipe=mine"]).config == resolve(["+recipe=quickstart"]).config


def test_a_copy_under_its_own_name_goes_before_the_shipped_one(tmp_path):
    cli.dispatch(["copy", "quickstart"])
    with (tmp_path / "recipes/quickstart.yaml").open("a") as file:
        file.write("\nseed: 4711\n")
    assert resolve(["+recipe=quickstart"]).config.seed == 4711


def test_an_existing_file_is_never_replaced(tmp_path):
    cli.dispatch(["copy", "quickstart"])
    (tmp_path / "recipes/quickstart.yaml").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        cli.dispatch(["copy", "quickstart"])
    assert (tmp_path / "recipes/quickstart.yaml").read_text() == "mine"


@pytest.mark.parametrize("name", ["", "''", "../up", "a/b", "3", ".hidden", "a b"])
def test_a_name_that_no_command_line_could_give_is_refused(name, tmp_path):
    with pytest.raises(UserError, match="cannot name a recipe"):
        cli.dispatch(["copy", "quickstart", name])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "message"), [("quick", "Did you mean quickstart"), ("", "no such recipe")])
def test_an_unknown_recipe_is_answered_with_the_near_ones(name, message):
    with pytest.raises(UserError, match=message):
        cli.dispatch(["copy", name])


def test_recipes_lists_the_users_first_and_each_name_once(tmp_path, capsys):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/zebra.yaml").write_text("# Black and white.\nseed: 1\n")
    (tmp_path / "recipes/quickstart.yaml").write_text("# My own start.\nseed: 1\n")
    assert cli.dispatch(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"{'quickstart':<26}My own start.", f"{'zebra':<26}Black and white."]
    assert sum(line.startswith("quickstart ") for line in lines) == 1
    shipped = {file.stem for file in paths.shipped("recipes").glob("*.yaml")}
    assert shipped <= {line.split()[0] for line in lines}
    assert max(map(len, lines)) <= 100


def test_a_recipe_that_is_not_utf8_does_not_hide_the_others(tmp_path, capsys):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/old.yaml").write_bytes("# 中文\n".encode("gbk"))
    assert cli.dispatch(["recipes"]) == 0
    assert "quickstart" in capsys.readouterr().out
