"""Where a key was set, for messages."""

from __future__ import annotations

import pytest

from tunerun import paths
from tunerun.config import sources


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "conf/method").mkdir(parents=True)
    (tmp_path / "recipes/base.yaml").write_text("seed: 1\nmethod:\n  rank: 2\n  alpha: 3\n")
    (tmp_path / "recipes/mine.yaml").write_text("defaults:\n  - base\n  - _self_\nmethod:\n  rank: 4\n")
    (tmp_path / "conf/method/own.yaml").write_text("kind: lora\nrank: 5\ndropout: 0.1\n")
    return tmp_path


def origin(key: str, typed: tuple[str, ...] = (), recipe: str | None = "mine") -> str:
    choices = {"recipe": recipe, "method": "own", "hydra/launcher": "basic", "track": None}
    return sources.locate(choices, frozenset(typed)).origin(key)


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("method.rank", "recipes/mine.yaml:5"),
        ("method.alpha", "recipes/base.yaml:4"),
        ("seed", "recipes/base.yaml:1"),
        ("method.dropout", "conf/method/own.yaml:3"),
        ("train.epochs", ""),
        ("rank", ""),
    ],
)
def test_the_strongest_file_that_sets_a_key_is_named_with_its_line(project, key, found):
    assert origin(key) == found


@pytest.mark.parametrize("typed", ["method.rank", "method", "method.rank.x"])
def test_the_command_line_goes_before_files(project, typed):
    assert origin("method.rank", (typed,)) == "command line"


def test_an_item_of_a_list_is_found_by_the_lists_key(project):
    (project / "recipes/listed.yaml").write_text("data:\n  path: [a, b]\n")
    assert origin("data.path[1]", recipe="listed") == "recipes/listed.yaml:2"


def test_the_last_of_several_recipes_goes_first(project):
    assert origin("method.rank", recipe="[mine, base]") == "recipes/base.yaml:3"


def test_the_users_recipe_hides_the_shipped_one(project):
    (project / "recipes/quickstart.yaml").write_text("seed: 1\n")
    assert sources.recipe_file("quickstart") == project / "recipes/quickstart.yaml"
    assert sources.recipe_file("qwen2.5-lora") == paths.shipped("recipes") / "qwen2.5-lora.yaml"
    assert sources.recipe_file("qwen2.5-lora.yaml") == paths.shipped("recipes") / "qwen2.5-lora.yaml"


@pytest.mark.parametrize("name", ["nothing", "", "../conf/tunerun"])
def test_what_is_no_recipe_has_no_file(project, name):
    assert sources.recipe_file(name) is None


def test_files_are_named_from_the_folder_of_configs():
    assert sources.label(paths.shipped("conf") / "method/lora.yaml") == "conf/method/lora.yaml"
