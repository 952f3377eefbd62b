from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import CHATML, random_samples, tiny_qwen2, write_store
from tests.train.runs import LORA, make_run, train_step
from tunerun import artifacts
from tunerun.chat.template import load_template
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.config.schema import GgufConfig
from tunerun.errors import GateError, StageError
from tunerun.models import adapters, load
from tunerun.models.folder import set_chat_template
from tunerun.plan.steps import ExportStep, Placement, VerifyStep
from tunerun.train import stage as train_stage
from tunerun.verify.stage import run


@pytest.fixture(scope="module")
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
    _state_template(out)
    return out


def _state_template(out: Path) -> None:
    template = load_template(out / "base", load_tokenizer(out / "base").named)
    assert template is not None
    for folder in (artifacts.DATA, artifacts.EVAL_DATA):
        manifest = json.loads((out / folder / "manifest.json").read_text())
        manifest["template_sha256"] = template.sha256
        (out / folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def out(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    model = json.loads((tmp_path / "run" / artifacts.MODEL).read_text())
    model["folder"] = str(tmp_path / "run" / "base")
    (tmp_path / "run" / artifacts.MODEL).write_text(json.dumps(model))
    return tmp_path / "run"


def _step(**values: Any) -> VerifyStep:
    defaults: dict[str, Any] = {
        "level": "quick",
        "adapter": artifacts.ADAPTER,
        "merged": True,
        "gguf_types": (),
        "chat": True,
        "chat_template": None,
        "prompts": ("Who are you?",),
        "placement": Placement(threads=1),
        "seed": 1,
    }
    return VerifyStep(**{**defaults, **values})


def _gates(out: Path) -> dict[str, dict[str, Any]]:
    report = json.loads((out / "verify" / "report.json").read_text())
    assert report["schema"] == 1
    assert report["passed"] == all(gate["verdict"] != "fail" for gate in report["gates"])
    return {gate["name"]: gate for gate in report["gates"]}


def _change(path: Path, name: str, factor: float) -> None:
    tensors = load_file(path)
    found = next(key for key in tensors if name in key)
    tensors[found] = tensors[found] * factor
    save_file(tensors, path, metadata={"format": "pt"})


def _export(out: Path, types: tuple[str, ...]) -> None:
    from tunerun.export.stage import run as export

    gguf: Any = GgufConfig(types=types)  # type: ignore[arg-type]
    export(ExportStep(name="tiny", merged=True, gguf=gguf, chat_template=None), out)


def test_a_sound_merge_passes_every_gate(out: Path) -> None:
    run(_step(level="full"), out)
    gates = _gates(out)
    assert {gate["verdict"] for gate in gates.values()} == {"pass"}
    assert list(gates) == ["template_of_data", "template_tokens:merged", "merge_logits"]


def test_a_merge_that_lost_one_module_fails_and_is_named(out: Path) -> None:
    _change(out / artifacts.MERGED / "model.safetensors", "layers.1.mlp.down_proj", 1.01)
    with pytest.raises(GateError, match="gate merge_logits failed: merged/ does not predict"):
        run(_step(), out)
    assert _gates(out)["merge_logits"]["verdict"] == "fail"


def test_an_adapter_without_effect_proves_nothing(out: Path) -> None:
    weights = load_file(out / artifacts.ADAPTER / adapters.WEIGHTS)
    save_file({name: torch.zeros_like(value) for name, value in weights.items()}, out / "adapter" / adapters.WEIGHTS)
    shutil.copy(out / "base" / "model.safetensors", out / artifacts.MERGED / "model.safetensors")
    run(_step(), out)
    gate = _gates(out)["merge_logits"]
    assert (gate["verdict"], gate["reason"][:32]) == ("not_proved", "the adapter changes the base mod")


def test_another_template_in_the_merged_model_fails(out: Path) -> None:
    set_chat_template(out / artifacts.MERGED, CHATML.replace("assistant", "helper"))
    with pytest.raises(GateError, match="gate template_tokens:merged failed"):
        run(_step(), out)


def test_data_rendered_with_another_template_fail(out: Path) -> None:
    (out / "mine.jinja").write_text(CHATML.replace("assistant", "helper"))
    with pytest.raises(GateError, match="gate template_of_data failed"):
        run(_step(chat_template=str(out / "mine.jinja")), out)


def test_a_missing_gguf_is_an_error_not_a_pass(out: Path) -> None:
    with pytest.raises(StageError, match="no f16 GGUF file to verify"):
        run(_step(gguf_types=("f16",)), out)


def test_every_gguf_type_is_compared_within_its_bound(out: Path) -> None:
    pytest.importorskip("llama_cpp")
    types = ("f16", "q8_0", "q4_k_m")
    _export(out, types)
    run(_step(gguf_types=types), out)
    gates = _gates(out)
    losses = [gates[f"gguf_logits:tiny-{kind}.gguf"]["measured"]["mean_kl_nats"] for kind in types]
    assert losses == sorted(losses)
    assert losses[0] < 1e-4
    assert all(gates[f"template_tokens:tiny-{kind}.gguf"]["verdict"] == "pass" for kind in types)


def test_a_gguf_of_other_weights_fails(out: Path) -> None:
    pytest.importorskip("llama_cpp")
    _export(out, ("f16",))
    _change(out / artifacts.MERGED / "model.safetensors", "layers.0.self_attn.v_proj.weight", 1.5)
    with pytest.raises(GateError, match=r"gate gguf_logits:tiny-f16.gguf failed"):
        run(_step(gguf_types=("f16",)), out)


def test_without_llama_cpp_gguf_gates_are_not_proved(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llama_cpp")
    _export(out, ("f16",))
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    run(_step(gguf_types=("f16",)), out)
    gates = _gates(out)
    for name in ("template_tokens:tiny-f16.gguf", "gguf_logits:tiny-f16.gguf"):
        assert gates[name]["verdict"] == "not_proved"
        assert "tunerun[gguf]" in gates[name]["reason"]
