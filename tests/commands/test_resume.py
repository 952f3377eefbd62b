"""`tunerun resume`: what reaches the plan of the run that goes on."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tunerun import cli
from tunerun.commands import prepare
from tunerun.config.resolve import resolve
from tunerun.run import rundir, runner


@pytest.fixture
def plans(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A run directory `stopped`, and the plans that resuming it would execute."""
    monkeypatch.chdir(tmp_path)
    found: list[Any] = []
    prepared = prepare.prepare(resolve(["+recipe=quickstart", "run_dir=stopped"]))
    (tmp_path / "stopped").mkdir()
    rundir.write_config(tmp_path / "stopped", prepared.config, ())
    monkeypatch.setattr(runner, "execute", lambda plan, **_: found.append(plan) or 0)
    return found


def test_allowed_keys_reach_the_train_stage_and_change_no_fingerprint(plans: list[Any]) -> None:
    from tunerun.plan import step_keys

    assert cli.dispatch(["resume", "stopped", "--allow", "train.learning_rate", "--allow", "data"]) == 0
    (plan,) = plans
    assert plan.train.allow == ("data", "train.learning_rate")
    assert step_keys.fingerprint_keys(plan.train) == step_keys.fingerprint_keys(
        dataclasses.replace(plan.train, allow=())
    )


def test_without_the_option_nothing_may_differ(plans: list[Any]) -> None:
    cli.dispatch(["resume", "stopped"])
    assert plans[0].train.allow == ()
