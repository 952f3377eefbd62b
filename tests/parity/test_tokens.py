from __future__ import annotations

import json

import pytest

from tunerun.base_model import BaseModel, write_base
from tunerun.config.schema import DataConfig, ObjectiveConfig
from tunerun.data import stage
from tunerun.formats.tokens import TokenStore
from tunerun.plan.steps import DataStep


@pytest.mark.shared
def test_the_public_vectors_of_qwen_go_through_the_data_stage_exactly(shared_dir, tmp_path):
    folder = shared_dir / "tokenizers" / "qwen2.5"
    texts = (folder / "vectors.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = (folder / "vectors.out").read_text(encoding="utf-8").split("\n")
    assert len(texts) == len(lines) == 47
    # Texts of nothing but white space are no rows; tests/data/test_encode.py has them.
    cases = [(text, [int(token) for token in line.split()]) for text, line in zip(texts, lines, strict=True)]
    cases = [(text, ids) for text, ids in cases if text.strip()]
    path = tmp_path / "vectors.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text, _ in cases), encoding="utf-8")
    write_base(tmp_path, BaseModel(folder=folder, path="qwen", revision=None, sha256=""))
    data = DataConfig(path=(str(path),), max_length=4096)
    stage.run(DataStep(data=data, objective=ObjectiveConfig(kind="pretrain"), chat_template=None, seed=0), tmp_path)
    store = TokenStore.open(tmp_path / "data")
    end = 151645
    assert [store.row(row)[0].tolist() for row in range(len(store))] == [[*ids, end] for _, ids in cases]
    assert store.trained.all()
