"""Where inference servers are looked for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tunerun import servers


def test_an_engine_that_is_no_server_needs_none():
    assert servers.missing("llamacpp", None) is None
    assert servers.missing("transformers", "/nowhere/python") is None


def test_an_interpreter_is_asked_what_it_has():
    assert servers.has_package("json", sys.executable)
    assert not servers.has_package("no_such_package", sys.executable)
    assert not servers.has_package("json", "/nowhere/python")


@pytest.mark.parametrize("engine", ["vllm", "lmdeploy"])
def test_what_is_not_installed_is_told_with_the_line_that_installs_it(engine):
    problem = servers.missing(engine, sys.executable)
    assert problem is not None
    assert problem.where == "env.serve.python"
    assert f"{engine} is not installed in the environment of {sys.executable}" in problem.what
    assert "pip install" in problem.fix


def test_an_interpreter_that_is_not_there_is_told():
    problem = servers.missing("vllm", "/nowhere/python")
    assert problem is not None
    assert problem.what == "there is no interpreter /nowhere/python."


def test_ollama_is_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    problem = servers.missing("ollama", None)
    assert problem is not None
    assert "PATH" in problem.what
    program = tmp_path / "ollama"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert servers.missing("ollama", None) is None
