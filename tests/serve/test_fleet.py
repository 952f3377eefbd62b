from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tunerun.config.schema import ServeConfig
from tunerun.errors import UserError
from tunerun.plan.placement import Placement
from tunerun.serve.fleet import build_fleet, check_targets, named
from tunerun.serve.targets import Target

BASE = Target(name="base", engine="transformers", weights=Path("/models/base"), tokenizer=Path("/models/base"))
POLITE = replace(BASE, name="polite", adapter=Path("/runs/polite/adapter"))
BRIEF = replace(BASE, name="brief", adapter=Path("/runs/brief/adapter"))
FILE = Target(name="file", engine="llamacpp", weights=Path("/models/base.gguf"))


def test_models_on_the_same_weights_share_a_process():
    fleet = build_fleet([POLITE, BASE, FILE, BRIEF], ServeConfig(), Placement())
    assert list(fleet.models) == ["polite", "base", "file", "brief"]
    assert fleet.first.target is POLITE
    shared = {fleet.models[name].engine for name in ("polite", "base", "brief")}
    assert len(shared) == 1
    assert fleet.engines == (*shared, fleet.models["file"].engine)
    (engine,) = shared
    assert engine.spec.adapters == {"polite": "/runs/polite/adapter", "brief": "/runs/brief/adapter"}
    assert fleet.models["file"].engine.spec.adapters == {}


def test_the_same_weights_on_two_paths_are_the_same(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "link").symlink_to("base")
    targets = [replace(POLITE, weights=tmp_path / "base"), replace(BRIEF, weights=tmp_path / "link")]
    assert len(build_fleet(targets, ServeConfig(), Placement()).engines) == 1


def test_what_differs_in_more_than_the_adapter_has_its_own_process():
    others = [replace(BASE, name="stops", stops=("END",)), replace(BASE, name="short", context_tokens=64)]
    assert len(build_fleet([BASE, *others], ServeConfig(), Placement()).engines) == 3


def test_names_are_given_in_order():
    assert [target.name for target in named([BASE, FILE], ["a", "b"])] == ["a", "b"]
    assert named([BASE, FILE], []) == [BASE, FILE]
    with pytest.raises(UserError, match="1 names for 2 targets"):
        named([BASE, FILE], ["a"])


@pytest.mark.parametrize("name", ["", "a b", "../up", "a/b", "x" * 65, "naïve", "a\n"])
def test_a_name_that_cannot_be_one_is_told(name):
    with pytest.raises(UserError, match="--names"):
        check_targets([replace(BASE, name=name)])


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(UserError) as caught:
        check_targets([BASE, BASE, replace(FILE, name="a b"), replace(POLITE, unverified="the run failed")])
    assert len(caught.value.problems) == 3
    check_targets([BASE, FILE, POLITE, BRIEF])


def test_what_cannot_be_batched_is_told():
    with pytest.raises(UserError) as caught:
        check_targets([BASE, FILE, POLITE], "continuous")
    assert [problem.where for problem in caught.value.problems] == ["serve.batching"] * 2
    assert "base, polite are on the same one" in str(caught.value)
    assert "llamacpp answers for file" in str(caught.value)
    check_targets([POLITE, replace(BASE, name="other", weights=Path("/models/other"))], "continuous")
    (engine,) = build_fleet([POLITE], ServeConfig(batching="continuous"), Placement()).engines
    assert engine.spec.batching == "continuous"
