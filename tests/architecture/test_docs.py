"""Generated references are current, and every recipe composes and plans."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from tests.conftest import ROOT
from tunerun.commands.prepare import prepare
from tunerun.config import reference, schema, typed
from tunerun.config.resolve import group_names, resolve
from tunerun.plan import capacity
from tunerun.plan import plan as plans

RECIPES = [file.stem for file in reference.recipe_files()]
GROUPS = sorted(group_names())


def test_the_key_reference_is_current():
    assert (ROOT / "conf" / "README.md").read_text(encoding="utf-8") == reference.config_reference(), "run make docs"


def test_the_recipe_reference_is_current():
    assert (ROOT / "recipes" / "README.md").read_text(encoding="utf-8") == reference.recipe_reference(), "run make docs"


@pytest.mark.parametrize("file", capacity.files(), ids=lambda file: file.name)
def test_the_table_of_what_fits_is_current(file):
    text = file.read_text(encoding="utf-8")
    assert text == capacity.with_table(text), "run make docs"


def test_every_key_says_what_it_means():
    for cls in vars(schema).values():
        if isinstance(cls, type) and dataclasses.is_dataclass(cls):
            documented = reference.field_docs()[cls.__name__]
            assert {item.name for item in dataclasses.fields(cls)} == set(documented), cls.__name__


def test_every_key_is_read_by_something():
    """An option that nothing reads is a lie: each field's name occurs in code outside the schema."""
    code = "\n".join(
        file.read_text(encoding="utf-8")
        for file in (ROOT / "src" / "tunerun").rglob("*.py")
        if file.parent.name != "schema" and file.name != "checks.py"
    )
    for cls in vars(schema).values():
        if isinstance(cls, type) and dataclasses.is_dataclass(cls):
            unread = [item.name for item in dataclasses.fields(cls) if f".{item.name}" not in code]
            assert unread == [], cls.__name__


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_composes_plans_and_round_trips(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = prepare(resolve([f"+recipe={recipe}"])).plan
    assert plan.name == recipe
    assert plan.estimate is not None
    assert plans.from_json(plans.to_json(plan)) == plan


def overrides() -> list[tuple[str, str]]:
    """A sample of recipe x option: every option of every group with one recipe, in turn."""
    options = [f"{group}={option}" for group in GROUPS for option in reference.option_names(group)]
    return list(zip(itertools.cycle(RECIPES), options, strict=False))


@pytest.mark.parametrize(("recipe", "option"), overrides())
def test_any_option_combines_with_a_recipe_or_is_refused_for_a_reason(recipe, option, tmp_path, monkeypatch):
    from tunerun.errors import UserError

    monkeypatch.chdir(tmp_path)
    try:
        plan = prepare(resolve([f"+recipe={recipe}", option])).plan
    except UserError as error:
        assert error.problems, error
        assert all(problem.where and problem.what for problem in error.problems)
    else:
        assert plans.from_json(plans.to_json(plan)) == plan


def test_no_recipe_restates_a_default():
    for file in reference.recipe_files():
        import yaml

        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        written = {k: v for k, v in content.items() if k != "defaults"}
        default = typed.flatten(typed.plain(schema.RunConfig()))
        for key, value in typed.flatten(written).items():
            assert key not in default or default[key] != value, f"{file.name}: {key} restates its default"
