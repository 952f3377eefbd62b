"""A run with an adapter and a merged model, to be verified."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.tiny import random_samples, tiny_qwen2, write_store
from tests.train.runs import LORA, make_run, train_step
from tests.verify.runs import state_template
from tunerun import artifacts
from tunerun.models import adapters, load
from tunerun.train import stage as train_stage


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an adapter and, merged by peft, a merged model."""
    out = tmp_path_factory.mktemp("trained")
    tiny_qwen2(out / "base", hidden_size=256, intermediate_size=256)
    make_run(out)
    write_store(out / artifacts.EVAL_DATA, [[sample] for sample in random_samples(4, seed=9)])
    train_stage.run(train_step(LORA), out)
    network = load.load_model(out / "base", dtype=torch.float32, device="cpu")
    merged = adapters.load_adapter(network, out / artifacts.ADAPTER, trainable=False).merge_and_unload()
    options = {"base": out / "base", "dtype": torch.float32, "max_shard_size_bytes": 10**9}
    load.save_model(merged, out / artifacts.MERGED, merged.state_dict(), **options)
    state_template(out)
    return out


@pytest.fixture
def out(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    model = json.loads((tmp_path / "run" / artifacts.MODEL).read_text())
    model["folder"] = str(tmp_path / "run" / "base")
    (tmp_path / "run" / artifacts.MODEL).write_text(json.dumps(model))
    return tmp_path / "run"
