"""4-bit folders, against what transformers and bitsandbytes write of the same model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import random_samples, tiny_qwen2, write_store
from tests.train.runs import LORA, make_run, train_step
from tests.verify.runs import read_gates, state_template, verify_step
from tunerun import artifacts
from tunerun.config.schema import Bnb4Config, GgufConfig
from tunerun.errors import GateError, StageError
from tunerun.export.stage import run
from tunerun.formats.handoff import read_handoff
from tunerun.merge.merge import merge_adapter
from tunerun.models import load
from tunerun.plan.steps import ExportStep
from tunerun.verify import stage as verify_stage

pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    weights = tiny_qwen2(out / "base", hidden_size=128, dtype="bfloat16") / "model.safetensors"
    save_file({name: value.bfloat16() for name, value in load_file(weights).items()}, weights)
    from tunerun.train import stage

    stage.run(train_step(LORA), make_run(out))
    write_store(out / artifacts.EVAL_DATA, [[sample] for sample in random_samples(4, seed=9)])
    state_template(out)
    merge_adapter(out / "base", out / artifacts.ADAPTER, out / artifacts.MERGED, max_shard_size_bytes=1 << 30)
    return out


@pytest.fixture
def out(trained: Path, tmp_path: Path) -> Path:
    copy = shutil.copytree(trained, tmp_path / "run")
    model = artifacts.read_json(copy / artifacts.MODEL) | {"folder": str(copy / "base")}
    artifacts.write_json(copy / artifacts.MODEL, model)
    return copy


def export(out: Path, *, merged: bool = True, double: bool = True, shard: int = 10**9, system: str = "") -> Path:
    step = ExportStep(
        name="tiny",
        merged=merged,
        gguf=GgufConfig(),
        chat_template=None,
        adapter=artifacts.ADAPTER,
        bnb4=Bnb4Config(write=True, double_quant=double),
        max_shard_size_bytes=shard,
        system=system or None,
    )
    made, *_ = run(step, out)
    assert (made.kind, made.path) == ("bnb4", "export/bnb4")
    return out / "export" / "bnb4"


def by_transformers(folder: Path, target: Path, *, double: bool) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16)
    model.save_pretrained(target)
    return load_file(target / "model.safetensors")


@pytest.mark.parametrize("merged", [True, False])
def test_what_servers_have_to_know_lies_beside_it_as_beside_gguf(out: Path, merged: bool) -> None:
    export(out, merged=merged, system="Be kind.")
    folder = out / artifacts.EXPORT
    assert {path.name for path in folder.iterdir()} == {
        "bnb4", "serve.json", "chat_template.jinja", "lmdeploy_chat_template.json"
    }  # fmt: skip
    facts = read_handoff(folder / "serve.json")
    assert (facts.default, facts.files, facts.stops) == (None, {}, ("<|im_end|>",))
    assert (facts.template, facts.lmdeploy.file) == ("chat_template.jinja", "lmdeploy_chat_template.json")
    assert facts.ollama.reason == "there is no GGUF file of the whole model"
    gate = "template_tokens:lmdeploy_chat_template.json"
    verify_stage.run(verify_step(merged=merged, folders=("bnb4",)), out)
    assert read_gates(out)[gate]["verdict"] == "pass"
    assert not [name for name in read_gates(out) if name.startswith(("modelfile", "llama-server"))]
    (folder / "lmdeploy_chat_template.json").write_text("{")
    with pytest.raises(GateError, match=gate):
        verify_stage.run(verify_step(merged=merged, folders=("bnb4",)), out)


def test_a_model_without_layers_of_known_names_is_told(out: Path) -> None:
    file = out / artifacts.MERGED / "model.safetensors"
    save_file({name.replace(".layers.", ".h."): value for name, value in load_file(file).items()}, file)
    with pytest.raises(StageError, match="no weight of it is called"):
        export(out)
    assert not (out / artifacts.EXPORT).exists()


@pytest.mark.parametrize("double", [True, False])
def test_every_tensor_is_the_one_that_transformers_writes(out: Path, tmp_path: Path, double: bool) -> None:
    wanted = by_transformers(out / artifacts.MERGED, tmp_path / "wanted", double=double)
    found = load_file(export(out, double=double) / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert sum("quant_state" in name for name in found) == 14
    for name, value in found.items():
        if "quant_state" in name:
            left, right = (json.loads(bytes(item.tolist())) for item in (value, wanted[name]))
            assert left.pop("nested_offset", 0) == pytest.approx(right.pop("nested_offset", 0), rel=1e-6)
            assert left == right
        else:
            assert value.dtype == wanted[name].dtype
            assert torch.equal(value, wanted[name]), name


def test_it_is_loaded_and_verified(out: Path) -> None:
    export(out)
    verify_stage.run(verify_step(folders=("bnb4",)), out)
    gates = read_gates(out)
    assert gates["bnb4_logits:bnb4"]["verdict"] == "pass"
    assert 0 < gates["bnb4_logits:bnb4"]["measured"]["mean_kl_nats"] < 0.3
    assert gates["template_tokens:bnb4"]["verdict"] == "pass"


def test_base_and_adapter_give_the_same_folder_as_the_merged_model_in_any_shards(out: Path) -> None:
    wanted = load_file(export(out) / "model.safetensors")
    folder = export(out, merged=False, shard=50_000)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    found = {name: value for shard in shards for name, value in load_file(shard).items()}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    model = load.load_model(folder, dtype=torch.bfloat16, device="cpu")
    assert "Linear4bit" in type(model.model.layers[0].mlp.up_proj).__name__


def test_a_weight_that_is_no_number_is_refused(out: Path) -> None:
    from tests.verify.runs import change

    change(out / artifacts.MERGED / "model.safetensors", "up_proj", float("nan"))
    with pytest.raises(StageError, match=r"up_proj.weight holds a value that is infinite"):
        export(out)
    assert not (out / "export").exists()
