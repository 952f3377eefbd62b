"""Creates a model in this machine's Ollama from the exported files."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tunerun import artifacts
from tunerun.errors import StageError
from tunerun.formats.handoff import HANDOFF, read_handoff
from tunerun.formats.modelfile import MODELFILE, OLDER_MODELFILE, read_modelfile

_TIMEOUT_SECONDS = 3600
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


def create_model(run: Path, name: str) -> str:
    """Runs `ollama create` with the Modelfile that this release of Ollama needs.

    Args:
        run: The run directory.
        name: Of the model in Ollama.

    Returns:
        Name of the Modelfile.

    Raises:
        StageError: There is no Ollama, no export, no Modelfile for this release, or `ollama create` fails.
    """
    program = shutil.which("ollama")
    if program is None:
        raise StageError("publish.ollama: there is no `ollama` on the PATH. Install Ollama, or set it to null.")
    export = run / artifacts.EXPORT
    if not (export / MODELFILE).is_file():
        raise StageError(f"publish.ollama: there is no {export / MODELFILE}. Run the export stage.")
    modelfile = _choose(export, _version(program))
    command = [program, "create", name, "-f", modelfile]
    done = _run(command, export)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split()[-40:])
        shown = f"cd {export} && ollama create {name} -f {modelfile}"
        raise StageError(f"ollama create failed: {said} Is Ollama running? Try it by hand: {shown}")
    return modelfile


def _choose(export: Path, version: tuple[int, ...]) -> str:
    needed = read_modelfile((export / MODELFILE).read_text(encoding="utf-8")).requires
    if needed is None or version >= _parts(needed):
        return MODELFILE
    if (export / OLDER_MODELFILE).is_file():
        return OLDER_MODELFILE
    reason = read_handoff(export / HANDOFF).ollama.reason
    shown = ".".join(map(str, version))
    raise StageError(f"Ollama {shown} cannot render this model's chat template ({reason}). Update it to {needed}.")


def _version(program: str) -> tuple[int, ...]:
    said = _run([program, "--version"], Path.cwd())
    found = _VERSION.findall(said.stdout + said.stderr)
    if not found:
        raise StageError(f"`ollama --version` says no version: {said.stdout.strip()}")
    # A client that reaches its server names the server's first.
    return tuple(map(int, found[0]))


def _parts(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, encoding="utf-8", timeout=_TIMEOUT_SECONDS, check=False
    )
