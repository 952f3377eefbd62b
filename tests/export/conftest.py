"""What the export tests share: one tiny model, and a way to write its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.export import upstream
from tests.export.models import build_model
from tunerun.chat.template import load_template
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.export.model import Model, read_model
from tunerun.export.special import read_special
from tunerun.export.write import write_gguf
from tunerun.formats.merged import plan_copy

pytest.importorskip("gguf")


def open_model(folder: Path, name: str = "tiny", template: str | None = None) -> Model:
    tokenizer = load_tokenizer(folder)
    chat_template = load_template(folder, tokenizer.named, template)
    special = read_special(folder, tokenizer, chat_template)
    weights = plan_copy(folder)
    return read_model(folder, name, weights=weights, tokenizer=tokenizer, special=special, template=chat_template)


def export(folder: Path, out: Path, types: Sequence[str]) -> dict[str, Path]:
    out.mkdir(exist_ok=True)
    return write_gguf(open_model(folder), types, out, threads=2)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A three-layer bfloat16 model with tied embeddings."""
    folder = tmp_path_factory.mktemp("tiny")
    build_model(folder, dtype=torch.bfloat16)
    return folder


@pytest.fixture(scope="session")
def source() -> Path:
    """llama.cpp's own source, which the converter comes with."""
    found = upstream.find_source()
    if found is None:
        pytest.skip("needs the source package of llama-cpp-python from the package index")
    return found
