"""Runs llama.cpp's own converter, which comes with the source package of llama-cpp-python.

Run as a script: `upstream.py SOURCE PRE_TOKENIZER MODEL --outfile FILE --outtype TYPE`.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# The user's, as it was before tests had one of their own: the package is large, and always the same.
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunerun" / "llama_cpp"
_PARTS = ("convert_", "conversion/", "gguf-py/")


def find_source() -> Path | None:
    """Returns llama.cpp's folder: named by TUNERUN_LLAMA_CPP_SOURCE, cached, or downloaded; None when it cannot be."""
    if named := os.environ.get("TUNERUN_LLAMA_CPP_SOURCE"):
        return Path(named)
    release = f"llama_cpp_python-{version('llama_cpp_python')}"
    source, package = _CACHE / f"{release}-upstream", _CACHE / f"{release}.tar.gz"
    if source.is_dir():
        return source
    _CACHE.mkdir(parents=True, exist_ok=True)
    # Other test processes may be at it, too.
    with tempfile.TemporaryDirectory(dir=_CACHE) as scratch:
        if not package.is_file():
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--no-binary",
                "llama-cpp-python",
            ]
            requirement = f"llama-cpp-python=={version('llama_cpp_python')}"
            if subprocess.run([*command, "--dest", scratch, requirement], check=False).returncode != 0:
                return None
            (Path(scratch) / package.name).replace(package)
        prefix = f"{release}/vendor/llama.cpp/"
        with tarfile.open(package) as archive:
            for member in archive:
                if member.name.removeprefix(prefix).startswith(_PARTS):
                    member.name = member.name.removeprefix(prefix)
                    archive.extract(member, Path(scratch) / "source", filter="data")
        try:
            (Path(scratch) / "source").rename(source)
        except OSError:
            if not source.is_dir():
                raise
    return source


def convert(source: Path, model: Path, out: Path, file_type: str, *, pre_tokenizer: str = "qwen2") -> None:
    """Converts a model folder in a process of its own (the converter brings a `gguf` package along).

    Args:
        source: llama.cpp's folder.
        model: What to convert.
        out: The file.
        file_type: `f32`, `f16`, `bf16` or `q8_0`.
        pre_tokenizer: What the converter would find by the hash of a well-known byte-level vocabulary.
    """
    command = [sys.executable, __file__, str(source), pre_tokenizer, str(model)]
    command += ["--outfile", str(out), "--outtype", file_type]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def convert_lora(source: Path, base: Path, adapter: Path, out: Path) -> None:
    """Converts an adapter folder to float32, in a process of its own."""
    script = str(source / "convert_lora_to_gguf.py")
    command = [sys.executable, script, "--base", str(base), "--outfile", str(out), str(adapter)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def _run(source: Path, pre_tokenizer: str, arguments: list[str]) -> None:
    sys.path[:0] = [str(source / "gguf-py"), str(source)]
    from conversion import base

    def no_sentencepiece(_: Any) -> Any:
        raise FileNotFoundError

    # It asks for a package that a BPE model does not need, and knows pre-tokenizers only by the ids that well-known
    # vocabularies give a probe text.
    if find_spec("sentencepiece") is None:
        base.TextModel._create_vocab_sentencepiece = no_sentencepiece
    base.TextModel.get_vocab_base_pre = lambda _self, _tokenizer: pre_tokenizer
    sys.argv = ["convert_hf_to_gguf.py", *arguments]
    runpy.run_path(str(source / "convert_hf_to_gguf.py"), run_name="__main__")


if __name__ == "__main__":
    _run(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
