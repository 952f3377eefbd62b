"""AWQ and FP8 folders come from llm-compressor in another interpreter, and are unpacked to be verified."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.export.test_gptq import out  # noqa: F401 (a fixture)
from tests.verify.runs import change, read_gates, verify_step
from tunerun import artifacts
from tunerun.config.schema import AwqConfig, Fp8Config, GgufConfig
from tunerun.errors import GateError, StageError
from tunerun.export.stage import run
from tunerun.plan.steps import ExportStep
from tunerun.verify import stage as verify_stage

SETTINGS = {"awq": {"awq": AwqConfig(write=True, group_size=32, rows=16)}, "fp8": {"fp8": Fp8Config(write=True)}}
PARTS = {"awq": "weight_packed", "fp8": "weight_scale"}


def export(run_dir: Path, kind: str, python: str | None) -> Path:
    step = ExportStep(
        name="tiny",
        merged=True,
        gguf=GgufConfig(),
        chat_template=None,
        python=python,
        **SETTINGS[kind],  # type: ignore[arg-type]
    )
    made, *_ = run(step, run_dir)
    assert (made.kind, made.path) == (kind, f"export/{kind}")
    return run_dir / "export" / kind


@pytest.mark.parametrize("kind", SETTINGS)
def test_what_is_not_installed_is_named_with_the_remedy(out: Path, kind: str) -> None:  # noqa: F811
    with pytest.raises(StageError, match=r"set env.export.python(.|\n)*No module named 'llmcompressor'"):
        export(out, kind, None)
    assert not (out / "export").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", SETTINGS)
def test_llm_compressors_folder_is_verified_without_it_and_other_weights_fail(out: Path, kind: str) -> None:  # noqa: F811
    """Needs TUNERUN_LLMCOMPRESSOR_PYTHON: the interpreter of an environment with llmcompressor."""
    python = os.environ.get("TUNERUN_LLMCOMPRESSOR_PYTHON")
    if python is None:
        pytest.skip("needs TUNERUN_LLMCOMPRESSOR_PYTHON, an interpreter with llmcompressor")
    assert subprocess.run([python, "-c", "import llmcompressor"], check=False).returncode == 0
    folder = export(out, kind, python)
    assert f"model.layers.0.mlp.up_proj.{PARTS[kind]}" in load_file(folder / "model.safetensors")
    wanted = (out / artifacts.MERGED / "tokenizer_config.json").read_bytes()
    assert (folder / "tokenizer_config.json").read_bytes() == wanted
    step = verify_step(adapter=None, folders=(kind,))
    verify_stage.run(step, out)
    gate = read_gates(out)[f"{kind}_logits:{kind}"]
    assert (gate["verdict"], gate["measured"]["layers"]) == ("pass", 14)
    assert gate["measured"]["mean_kl_nats"] > 0
    change(out / artifacts.MERGED / "model.safetensors", "layers.1.mlp.down_proj", 3.0)
    with pytest.raises(GateError, match=f"{kind}_logits:{kind} failed"):
        verify_stage.run(step, out)
