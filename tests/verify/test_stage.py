from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import CHATML, random_samples, write_store
from tests.verify.runs import change, export, read_gates, state_template, verify_step
from tunerun import artifacts
from tunerun.errors import GateError, StageError
from tunerun.models.folder import set_chat_template
from tunerun.verify.stage import run


def test_a_sound_merge_passes_every_gate(out: Path) -> None:
    run(verify_step(level="full"), out)
    gates = read_gates(out)
    assert {gate["verdict"] for gate in gates.values()} == {"pass"}
    assert list(gates) == ["template_of_data", "files:merged", "template_tokens:merged", "merge_logits"]


def test_a_merge_that_lost_one_module_fails_and_is_named(out: Path) -> None:
    change(out / artifacts.MERGED / "model.safetensors", "layers.1.mlp.down_proj", 1.01)
    with pytest.raises(GateError, match="gate merge_logits failed: merged/ does not predict"):
        run(verify_step(), out)
    assert read_gates(out)["merge_logits"]["verdict"] == "fail"


def test_an_adapter_without_effect_proves_nothing(out: Path) -> None:
    adapter = out / artifacts.ADAPTER / artifacts.ADAPTER_WEIGHTS
    save_file({name: torch.zeros_like(value) for name, value in load_file(adapter).items()}, adapter)
    shutil.copy(out / "base" / "model.safetensors", out / artifacts.MERGED / "model.safetensors")
    run(verify_step(), out)
    gate = read_gates(out)["merge_logits"]
    assert (gate["verdict"], gate["reason"][:32]) == ("not_proved", "the adapter changes the base mod")


def test_another_template_in_the_merged_model_fails(out: Path) -> None:
    set_chat_template(out / artifacts.MERGED, CHATML.replace("assistant", "helper"))
    with pytest.raises(GateError, match="gate template_tokens:merged failed"):
        run(verify_step(), out)


def test_data_rendered_with_another_template_fail(out: Path) -> None:
    (out / "mine.jinja").write_text(CHATML.replace("assistant", "helper"))
    with pytest.raises(GateError, match="gate template_of_data failed"):
        run(verify_step(chat_template=str(out / "mine.jinja")), out)


def test_a_missing_gguf_is_an_error_not_a_pass(out: Path) -> None:
    run(verify_step(), out)
    with pytest.raises(StageError, match="no f16 GGUF file to verify"):
        run(verify_step(gguf_types=("f16",)), out)
    assert not (out / "verify" / "report.json").exists(), "what was verified before is not what is there now"


def test_every_gguf_type_is_compared_within_its_bound(out: Path) -> None:
    pytest.importorskip("llama_cpp")
    types = ("f16", "q8_0", "q4_k_m")
    export(out, types)
    run(verify_step(gguf_types=types), out)
    gates = read_gates(out)
    losses = [gates[f"gguf_logits:tiny-{kind}.gguf"]["measured"]["mean_kl_nats"] for kind in types]
    assert losses == sorted(losses)
    assert losses[0] < 1e-4
    assert all(gates[f"template_tokens:tiny-{kind}.gguf"]["verdict"] == "pass" for kind in types)


def test_models_are_compared_on_rows_of_the_data_too_by_level(out: Path) -> None:
    pytest.importorskip("llama_cpp")
    write_store(out / artifacts.EVAL_DATA, [[sample] for sample in random_samples(40, seed=9)])
    state_template(out)
    export(out, ("q8_0",))
    texts = {}
    for level in ("quick", "full"):
        run(verify_step(level=level, gguf_types=("q8_0",)), out)
        texts[level] = read_gates(out)["template_tokens:tiny-q8_0.gguf"]["measured"]["texts"]
    shutil.rmtree(out / artifacts.EVAL_DATA)
    shutil.rmtree(out / artifacts.DATA)
    run(verify_step(gguf_types=("q8_0",)), out)
    none = read_gates(out)["template_tokens:tiny-q8_0.gguf"]["measured"]["texts"]
    assert {level: count - none for level, count in texts.items()} == {"quick": 4, "full": 32}


def test_a_gguf_of_other_weights_fails(out: Path) -> None:
    pytest.importorskip("llama_cpp")
    export(out, ("f16",))
    change(out / artifacts.MERGED / "model.safetensors", "layers.0.self_attn.v_proj.weight", 1.5)
    with pytest.raises(GateError, match=r"gate gguf_logits:tiny-f16.gguf failed"):
        run(verify_step(gguf_types=("f16",)), out)


def test_without_llama_cpp_gguf_gates_are_not_proved(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llama_cpp")
    export(out, ("f16",))
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    run(verify_step(gguf_types=("f16",)), out)
    gates = read_gates(out)
    for name in ("template_tokens:tiny-f16.gguf", "gguf_logits:tiny-f16.gguf"):
        assert gates[name]["verdict"] == "not_proved"
        assert "tunerun[gguf]" in gates[name]["reason"]
