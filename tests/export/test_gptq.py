"""GPTQ folders come from gptqmodel in another interpreter, and are unpacked to be verified."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import random_samples, tiny_qwen2, write_store
from tests.train.runs import make_run
from tests.verify.runs import change, read_gates, state_template, verify_step
from tunerun import artifacts
from tunerun.config.schema import GgufConfig, GptqConfig
from tunerun.errors import GateError, StageError, UserError
from tunerun.export.stage import run
from tunerun.formats.gptq import unpack
from tunerun.plan.steps import ExportStep
from tunerun.verify import stage as verify_stage

STAND_IN = Path(__file__).with_name("gptqmodel_stand_in.py")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run with a merged model; no adapter."""
    tiny_qwen2(tmp_path / "base", hidden_size=128)
    make_run(tmp_path)
    write_store(tmp_path / artifacts.EVAL_DATA, [[sample] for sample in random_samples(4, seed=9)])
    state_template(tmp_path)
    shutil.copytree(tmp_path / "base", tmp_path / artifacts.MERGED)
    return tmp_path


@pytest.fixture
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that has the stand-in."""
    folder = tmp_path_factory.mktemp("env")
    shutil.copy(STAND_IN, folder / "gptqmodel.py")
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    program.chmod(0o755)
    return str(program)


def export(out: Path, python: str | None, **settings: int) -> Path:
    gptq = GptqConfig(write=True, **{"bits": 8, "group_size": 32, **settings})  # type: ignore[arg-type]
    step = ExportStep(name="tiny", merged=True, gguf=GgufConfig(), chat_template=None, gptq=gptq, python=python)
    made, *_ = run(step, out)
    assert (made.kind, made.path) == ("gptq", "export/gptq")
    return out / "export" / "gptq"


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights_are_unpacked_as_they_were(bits: int) -> None:
    sys.path.insert(0, str(STAND_IN.parent))
    try:
        from gptqmodel_stand_in import GPTQModel, QuantizeConfig
    finally:
        sys.path.pop(0)
    packer = GPTQModel.load(".", QuantizeConfig(bits, 32, False))
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    parts = {name: value.numpy() for name, value in packer.pack(weight).items()}
    words = {name: parts[name].view(np.uint32) for name in ("qweight", "qzeros")}
    found = unpack({**parts, **words, "scales": parts["scales"].astype(np.float32)}, bits)
    steps = np.repeat(parts["scales"].T.astype(np.float32), 32, axis=1)
    assert found.shape == weight.shape
    assert (np.abs(found - weight.numpy()) <= 0.51 * steps).all()


def test_the_folder_is_the_quantisers_with_our_tokenizer(out: Path, python: str) -> None:
    folder = export(out, python)
    assert "model.layers.0.mlp.up_proj.qweight" in load_file(folder / "model.safetensors")
    assert not list(folder.glob("*.csv"))
    wanted = (out / artifacts.MERGED / "tokenizer_config.json").read_bytes()
    assert (folder / "tokenizer_config.json").read_bytes() == wanted


def test_it_is_verified_without_its_library_and_other_weights_fail(out: Path, python: str) -> None:
    export(out, python)
    step = verify_step(adapter=None, folders=("gptq",))
    verify_stage.run(step, out)
    gate = read_gates(out)["gptq_logits:gptq"]
    assert (gate["verdict"], gate["measured"]["layers"]) == ("pass", 14)
    assert gate["measured"]["mean_kl_nats"] > 0
    change(out / artifacts.MERGED / "model.safetensors", "layers.1.mlp.down_proj", 3.0)
    with pytest.raises(GateError, match="gptq_logits:gptq failed"):
        verify_stage.run(step, out)


@pytest.mark.parametrize(
    ("lost", "added", "reason"),
    [
        ("model.layers.1.mlp.up_proj.qweight", None, "model.layers.1.mlp.up_proj.qweight is missing"),
        ("model.layers.1.mlp.up_proj.", None, "model.layers.1.mlp.up_proj.weight is missing"),
        ("model.norm.weight", None, "model.norm.weight is missing"),
        (None, "model.layers.7.mlp.up_proj.qweight", "model.layers.7.mlp.up_proj.qweight belongs to no layer"),
    ],
)
def test_a_folder_without_a_tensor_or_with_a_strange_one_fails_by_its_name(
    out: Path, python: str, lost: str | None, added: str | None, reason: str
) -> None:
    weights = export(out, python) / "model.safetensors"
    found = {name: value for name, value in load_file(weights).items() if lost is None or not name.startswith(lost)}
    save_file({**found, **({added: torch.zeros(2)} if added else {})}, weights, metadata={"format": "pt"})
    with pytest.raises(GateError, match="gptq_logits:gptq failed"):
        verify_stage.run(verify_step(adapter=None, folders=("gptq",)), out)
    assert reason in read_gates(out)["gptq_logits:gptq"]["reason"]


def test_what_is_not_installed_is_named_with_the_remedy(out: Path) -> None:
    with pytest.raises(StageError, match=r"set env.export.python(.|\n)*No module named 'gptqmodel'"):
        export(out, None)
    with pytest.raises(StageError, match=r"env.export.python: /nowhere/python cannot be run"):
        export(out, "/nowhere/python")
    assert not (out / "export").exists()


def test_without_data_there_is_nothing_to_calibrate_on(out: Path, python: str) -> None:
    shutil.rmtree(out / artifacts.DATA)
    with pytest.raises(UserError, match="no data to calibrate on"):
        export(out, python)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_gptqmodel_itself(out: Path) -> None:
    """Needs TUNERUN_GPTQ_PYTHON: the interpreter of an environment with gptqmodel."""
    python = os.environ.get("TUNERUN_GPTQ_PYTHON")
    if python is None:
        pytest.skip("needs TUNERUN_GPTQ_PYTHON, an interpreter with gptqmodel")
    assert subprocess.run([python, "-c", "import gptqmodel"], check=False).returncode == 0
    folder = export(out, python)
    assert "model.layers.0.mlp.up_proj.qweight" in load_file(folder / "model.safetensors")
    verify_stage.run(verify_step(adapter=None, folders=("gptq",)), out)
    assert read_gates(out)["gptq_logits:gptq"]["verdict"] == "pass"
