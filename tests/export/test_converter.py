"""Architectures without facts: llama.cpp's own converter, found, checked and run in children."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
import transformers

from tests.export.compare import read_fields
from tests.export.models import TEMPLATE, build_tokenizer
from tunerun import artifacts
from tunerun.config.schema import GgufConfig
from tunerun.errors import StageError, UserError
from tunerun.export import stage
from tunerun.export.converter import find_converter, unpack
from tunerun.plan.steps import ExportStep

RELEASE = "llama_cpp_python-9.9.9"


def pack(folder: Path, members: dict[str, str]) -> tuple[Path, str]:
    """A source package, and its hash."""
    path = folder / f"{RELEASE}.tar.gz"
    with tarfile.open(path, "w:gz") as package:
        for name, text in members.items():
            info = tarfile.TarInfo(f"{RELEASE}/{name}")
            info.size = len(text)
            package.addfile(info, io.BytesIO(text.encode()))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_only_the_converter_is_unpacked(tmp_path: Path) -> None:
    llama = "vendor/llama.cpp"
    members = {
        f"{llama}/convert_hf_to_gguf.py": "x",
        f"{llama}/conversion/base.py": "y",
        f"{llama}/gguf-py/gguf/a.py": "z",
        f"{llama}/ggml/src/ggml.c": "no",
        "llama_cpp/llama.py": "no",
    }
    package, sha256 = pack(tmp_path, members)
    unpack(package, tmp_path / "kept", sha256=sha256)
    found = sorted(
        str(path.relative_to(tmp_path / "kept")) for path in (tmp_path / "kept").rglob("*") if path.is_file()
    )
    assert found == ["conversion/base.py", "convert_hf_to_gguf.py", "gguf-py/gguf/a.py"]


def test_another_package_is_not_unpacked(tmp_path: Path) -> None:
    package, _ = pack(tmp_path, {"vendor/llama.cpp/convert_hf_to_gguf.py": "x"})
    with pytest.raises(StageError, match="not the package that was released"):
        unpack(package, tmp_path / "kept", sha256="0" * 64)
    assert not (tmp_path / "kept").exists()


def test_a_package_that_climbs_out_is_refused(tmp_path: Path) -> None:
    package, sha256 = pack(tmp_path, {"vendor/llama.cpp/conversion/../../../../out.py": "x"})
    with pytest.raises((tarfile.TarError, StageError)):
        unpack(package, tmp_path / "kept", sha256=sha256)
    assert sorted(path.name for path in tmp_path.iterdir()) == [package.name]


def test_a_folder_without_a_converter_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"export\.gguf\.llama_cpp.*holds no convert_hf_to_gguf"):
        find_converter(str(tmp_path))


def test_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(StageError, match=r"cannot be downloaded\. Go online once, or set export\.gguf\.llama_cpp"):
        find_converter(None)
    assert not any(tmp_path.rglob("*"))


def build_foreign(folder: Path) -> None:
    """A model that there are no facts about."""
    torch.manual_seed(0)
    config = transformers.StableLmConfig(
        vocab_size=448,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
    )
    transformers.StableLmForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    build_tokenizer(folder)


def foreign_step(converter: Path, adapter: str | None = None, *, merged: bool = True) -> ExportStep:
    gguf = GgufConfig(types=("q4_k_m", "f16"), llama_cpp=str(converter))
    return ExportStep(name="demo", merged=merged, gguf=gguf, chat_template=None, adapter=adapter)


@pytest.mark.slow
def test_another_architecture_is_converted_and_quantised(tmp_path: Path, source: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    build_foreign(tmp_path / artifacts.MERGED)
    made = stage.run(foreign_step(source), tmp_path)
    assert [item.path for item in made if item.kind == "gguf"] == ["export/demo-q4_k_m.gguf", "export/demo-f16.gguf"]
    left = {file.relative_to(tmp_path).as_posix() for file in (tmp_path / "export").iterdir()}
    assert left == {item.path for item in made}, "no scratch file is left"
    for item in made[:2]:
        fields = read_fields(tmp_path / item.path)
        assert fields["general.architecture"][0] == "stablelm"
        assert fields["tokenizer.ggml.pre"][0] == "qwen2"
        assert fields["tokenizer.chat_template"][0] == TEMPLATE
        loaded = llama_cpp.Llama(str(tmp_path / item.path), n_ctx=64, n_threads=2, verbose=False)
        assert loaded("How many apples", max_tokens=4)["usage"]["completion_tokens"] > 0
        loaded.close()


@pytest.mark.slow
def test_what_the_converter_refuses_is_a_message(tmp_path: Path, source: Path) -> None:
    build_foreign(tmp_path / artifacts.MERGED)
    config = tmp_path / artifacts.MERGED / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": ["NobodysForCausalLM"]}))
    with pytest.raises(StageError, match="NobodysForCausalLM"):
        stage.run(foreign_step(source), tmp_path)
    assert not (tmp_path / "export").exists()
