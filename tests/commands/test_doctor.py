"""`tunerun doctor` tells what is there and what is missing."""

from __future__ import annotations

import importlib.util
import tomllib

import pytest

from tests.conftest import ROOT
from tunerun import cli
from tunerun.commands import doctor
from tunerun.errors import ExitCode, UserError


@pytest.fixture
def without(monkeypatch):
    """Makes a module look as if it were not installed."""
    found = importlib.util.find_spec

    def hide(name):
        assert found(name) is not None
        monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module == name else found(module))

    return hide


def test_the_machine_and_every_package_have_a_line(capsys):
    cli.dispatch(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["tunerun", "CPU", "disk"]
    assert {"torch", "hydra-core", "gguf", "vllm"} <= {line.split()[0] for line in lines}


def test_every_extra_is_looked_for():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {extra for _, _, extra in doctor._MODULES if extra is not None} == set(extras) - {"all", "dev"}


def test_a_missing_extra_is_named_and_is_no_failure(without, capsys):
    without("gguf")
    assert cli.dispatch(["doctor"]) == ExitCode.DONE
    assert f"{'gguf':<20}not installed: pip install 'tunerun[gguf]'" in capsys.readouterr().out


def test_a_missing_requirement_is_a_failure(without, capsys):
    without("peft")
    assert cli.dispatch(["doctor"]) == ExitCode.STAGE_FAILED
    assert f"{'peft':<20}MISSING: pip install peft" in capsys.readouterr().out


def test_arguments_are_refused():
    with pytest.raises(UserError, match="takes no arguments"):
        cli.dispatch(["doctor", "x"])
