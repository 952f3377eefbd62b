"""GGUF of architectures that tunerun has no facts about: llama.cpp's own converter and quantiser, in child processes.

The converter comes with the source package of llama-cpp-python, not with the installed one. It is downloaded once with
pip, checked by its hash, and its Python files are kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunerun import paths
from tunerun.artifacts import publish
from tunerun.chat.tokenizer import TOKENIZER, read_object
from tunerun.errors import Problem, StageError, UserError, require
from tunerun.export import pretokenizer
from tunerun.export.mix import FILE_TYPES
from tunerun.formats.safetensors import read_table

_RELEASE = "llama_cpp_python-0.3.36"
_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
_SCRIPT = "convert_hf_to_gguf.py"
_PARTS = (_SCRIPT, "conversion/", "gguf-py/")
_FLOATS = {"BF16": "bf16", "F16": "f16"}
_CHILD = "tunerun.export.converter_child"
_SAID_CHARACTERS = 2000


def find_converter(named: str | None) -> Path:
    """Finds llama.cpp's source, or downloads it.

    Args:
        named: A folder with llama.cpp's source; None takes the cached copy.

    Raises:
        UserError: The named folder holds no converter.
        StageError: There is no copy and none could be downloaded.
    """
    if named is not None:
        folder = Path(named).expanduser()
        if not (folder / _SCRIPT).is_file():
            what = f"{folder} holds no {_SCRIPT}."
            raise UserError(Problem(where="export.gguf.llama_cpp", what=what, fix="Name a copy of llama.cpp's source."))
        return folder
    kept = paths.user_cache() / "llama_cpp" / f"{_RELEASE}-converter"
    if not kept.is_dir():
        with tempfile.TemporaryDirectory(prefix="tunerun-llama-cpp-") as scratch:
            unpack(_download(Path(scratch)), kept, sha256=_SHA256)
    return kept


def unpack(archive: Path, target: Path, *, sha256: str) -> None:
    """Unpacks the converter from a source package, all of it or nothing.

    Raises:
        StageError: The package is not the one that is known, or holds no converter.
    """
    with archive.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise StageError(f"{archive.name} has the hash {found}, not {sha256}: it is not the package that was released.")
    prefix = f"{archive.name.removesuffix('.tar.gz')}/vendor/llama.cpp/"
    wanted = tuple(prefix + part for part in _PARTS)
    with publish(target) as staging, tarfile.open(archive) as package:
        for member in package:
            if member.name.startswith(wanted):
                member.name = member.name.removeprefix(prefix)
                package.extract(member, staging, filter="data")
        if not (staging / _SCRIPT).is_file():
            raise StageError(f"{archive.name} holds no {_SCRIPT}.")


def convert(converter: Path, model: Path, types: Sequence[str], out: Path, *, name: str) -> dict[str, Path]:
    """Writes one file of each type.

    Args:
        converter: llama.cpp's source.
        model: A model folder.
        types: Keys of `FILE_TYPES`.
        out: Folder for the files, which are named `<name>-<type>.gguf`.
        name: Of the run.

    Returns:
        The files by type, in the order of `types`.

    Raises:
        StageError: The converter or the quantiser failed; says what it said.
    """
    stored = next(iter(read_table(model).values())).dtype
    exact = _FLOATS.get(stored, "f32")
    made = {kind: out / f"{name}-{kind}.gguf" for kind in types}
    for kind in ("f32", "f16", "bf16"):
        if kind in types:
            _convert(converter, model, made[kind], kind, name)
    quantised = [kind for kind in types if kind not in ("f32", "f16", "bf16")]
    if quantised:
        whole = made.get(exact, out / f".{name}-{exact}.gguf")
        if exact not in made:
            _convert(converter, model, whole, exact, name)
        for kind in quantised:
            _quantise(whole, made[kind], kind)
        if exact not in made:
            whole.unlink()
    return made


def _convert(converter: Path, model: Path, target: Path, kind: str, name: str) -> None:
    arguments = ["convert", str(converter), _pre_tokenizer(model), str(model), str(target), kind, name]
    _run(arguments, f"llama.cpp's converter cannot write {model}")


def _quantise(source: Path, target: Path, kind: str) -> None:
    require("llama_cpp", "gguf")
    arguments = ["quantise", str(source), str(target), str(FILE_TYPES[kind].number), str(os.cpu_count() or 1)]
    _run(arguments, f"llama.cpp cannot make {kind} of {source.name}")


def _run(arguments: Sequence[str], failed: str) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-P", "-m", _CHILD, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StageError(f"{failed}:\n{done.stderr[-_SAID_CHARACTERS:].strip()}")


def _pre_tokenizer(model: Path) -> str:
    """Returns what to call the tokenizer's splitting when the converter does not know its vocabulary; may be empty."""
    file = model / TOKENIZER
    data: Mapping[str, Any] = read_object(file)
    known = data.get("model", {}).get("type") == "BPE" and not pretokenizer.check(file, data)
    return pretokenizer.name(data) if known else ""


def _download(folder: Path) -> Path:
    name, _, version = _RELEASE.rpartition("-")
    # Of this package alone: pip asks it for its metadata, and would compile all that it is built with, too.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", name]
    done = subprocess.run(
        [*command, "--dest", str(folder), f"{name}=={version}"], capture_output=True, text=True, check=False
    )
    archive = folder / f"{_RELEASE}.tar.gz"
    if done.returncode == 0 and archive.is_file():
        return archive
    said = done.stderr.strip()[-_SAID_CHARACTERS:]
    fix = "Go online once, or set export.gguf.llama_cpp to a copy of llama.cpp's source."
    raise StageError(f"llama.cpp's converter ({_RELEASE}) cannot be downloaded. {fix}\n{said}")
