"""`ollama create` is run with the Modelfile that the release understands."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tunerun.config.schema import PublishConfig
from tunerun.errors import StageError
from tunerun.formats.handoff import Handoff, Rendering, write_handoff
from tunerun.formats.modelfile import Modelfile, write_modelfile
from tunerun.plan.steps import PublishStep
from tunerun.publish.stage import run

STEP = PublishStep(publish=PublishConfig(ollama="mine:latest"), name="small", artifacts=())
SCRIPT = """#!/bin/sh
if [ "$1" = --version ]; then echo "ollama version is {version}"; exit 0; fi
pwd > "{log}"; echo "$@" >> "{log}"; [ -f "$4" ] || exit 9
echo "{said}" >&2; exit {code}
"""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    export = tmp_path / "run" / "export"
    export.mkdir(parents=True)
    content = Modelfile(weights="small-f16.gguf", requires="0.30.11")
    (export / "Modelfile").write_text(write_modelfile(content))
    handoff = Handoff(
        default="small-f16.gguf",
        files={"f16": "small-f16.gguf"},
        context=1,
        stops=(),
        template=None,
        template_sha256=None,
        tool_parser=None,
        ollama=Rendering(reason="it moves"),
    )
    write_handoff(export / "serve.json", handoff)
    return tmp_path / "run"


def install(folder: Path, patch: pytest.MonkeyPatch, *, version: str = "0.31.0", code: int = 0, said: str = "") -> Path:
    program, log = folder / "bin" / "ollama", folder / "log"
    program.parent.mkdir()
    program.write_text(SCRIPT.format(version=version, log=log, code=code, said=said))
    program.chmod(0o755)
    patch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return log


def test_a_new_release_takes_the_template_inside_the_gguf(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = install(tmp_path, monkeypatch)
    run(STEP, out)
    assert log.read_text().splitlines() == [str(out / "export"), "create mine:latest -f Modelfile"]


def test_an_older_release_takes_the_go_template(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = install(tmp_path, monkeypatch, version="0.5.7")
    with pytest.raises(StageError, match=r"Ollama 0.5.7 cannot render .*it moves.*Update it to 0.30.11"):
        run(STEP, out)
    (out / "export" / "Modelfile.go-template").write_text("FROM ./small-f16.gguf\n")
    run(STEP, out)
    assert log.read_text().splitlines()[-1] == "create mine:latest -f Modelfile.go-template"


def test_a_model_without_a_template_needs_no_release(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = install(tmp_path, monkeypatch, version="0.5.7")
    (out / "export" / "Modelfile").write_text("FROM ./small-f16.gguf\n")
    run(STEP, out)
    assert log.read_text().splitlines()[-1] == "create mine:latest -f Modelfile"


def test_a_failure_names_the_command_to_try(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, code=1, said="could not connect")
    with pytest.raises(StageError, match=r"could not connect .*ollama create mine:latest -f Modelfile"):
        run(STEP, out)


def test_without_ollama_or_an_export_it_says_so(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(StageError, match="no `ollama` on the PATH"):
            run(STEP, out)
    install(tmp_path, monkeypatch)
    (out / "export" / "Modelfile").unlink()
    with pytest.raises(StageError, match="Run the export stage"):
        run(STEP, out)
