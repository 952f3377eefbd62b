"""`tunerun copy --flat`: every recipe composes to the same when it stands alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tunerun import cli
from tunerun.config import typed
from tunerun.config.flat import flat_recipe
from tunerun.config.reference import recipe_files
from tunerun.config.resolve import compose_config, plain_config, rebuild, resolve
from tunerun.config.schema import RunConfig


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def composed(name: str) -> RunConfig:
    config, problems = typed.build(RunConfig, plain_config(compose_config([f"+recipe={name}"])))
    assert config is not None and not problems
    return config


@pytest.mark.parametrize("name", [file.stem for file in recipe_files()])
def test_a_flat_copy_composes_to_the_same_without_options(name, tmp_path):
    assert cli.dispatch(["copy", name, "mine", "--flat"]) == 0
    assert "defaults" not in (tmp_path / "recipes/mine.yaml").read_text()
    assert composed("mine") == composed(name)


@pytest.mark.parametrize(
    "text", ["${name}", r"\${name}", "a \\ b", "x ${y", "'quoted': \"twice\"", "你好\n# no comment", "???x"]
)
def test_a_text_is_written_so_that_it_reads_back_as_itself(text, tmp_path):
    config = composed("quickstart")
    config = replace(config, data=replace(config.data, system=text))
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/mine.yaml").write_text(flat_recipe(config, "Mine."), encoding="utf-8")
    assert resolve(["+recipe=mine"]).config.data.system == text
    assert rebuild(typed.plain(config), ["seed=5"]) == replace(config, seed=5)
