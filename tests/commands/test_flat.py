"""`tunerun copy --flat`: every recipe composes to the same when it stands alone."""

from __future__ import annotations

import pytest

from tunerun import cli
from tunerun.config import typed
from tunerun.config.reference import recipe_files
from tunerun.config.resolve import compose_config, plain_config
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
