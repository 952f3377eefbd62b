"""Faults that have reached users elsewhere, planted one at a time: each makes its gate fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, processors

from tests.tiny import CHATML
from tests.verify.runs import change, export, read_gates, state_template, verify_step
from tunerun import artifacts
from tunerun.config.schema import GgufConfig
from tunerun.errors import GateError
from tunerun.export import stage
from tunerun.export.adapter import write_adapter
from tunerun.formats.gguf_header import read_gguf_header
from tunerun.formats.handoff import read_handoff
from tunerun.merge.merge import merge_adapter
from tunerun.models.folder import set_chat_template
from tunerun.plan.steps import ExportStep
from tunerun.verify import probes
from tunerun.verify.stage import run

WEIGHTS = Path(artifacts.MERGED) / "model.safetensors"
START = "<|endoftext|>"


def fails(out: Path, gate: str, reason: str, **step: Any) -> None:
    with pytest.raises(GateError) as caught:
        run(verify_step(**step), out)
    found = read_gates(out)[gate]
    assert found["verdict"] == "fail", caught.value
    assert reason in found["reason"]


def gguf(out: Path) -> Path:
    return out / artifacts.EXPORT / "tiny-f16.gguf"


@pytest.fixture
def exported(out: Path) -> Path:
    """A run with an f16 GGUF file and every file beside it."""
    pytest.importorskip("llama_cpp")
    export(out, ("f16",), system="Be kind.")
    return out


def test_conversations_to_compare_are_of_every_kind() -> None:
    found = probes.conversations(("Who are you?",))
    assert len(found) >= 50
    roles = [[message["role"] for message in messages] for messages, _ in found]
    assert sum(tools is not None for _, tools in found) >= 3
    assert any("tool" in item for item in roles)
    assert sum("system" in item for item in roles) >= 20
    assert any(message["content"] == "" for messages, _ in found for message in messages if message["role"] == "system")
    assert max(map(len, roles)) >= 6


def test_what_is_sound_passes_every_gate(exported: Path) -> None:
    run(verify_step(level="full", gguf_types=("f16",)), exported)
    gates = read_gates(exported)
    assert {name: gate["verdict"] for name, gate in gates.items() if gate["verdict"] != "pass"} == (
        {} if shutil.which("llama-server") else {"llama-server:tiny-f16.gguf": "not_proved"}
    )
    assert {
        "files:merged",
        "files:tiny-f16.gguf",
        "template_tokens:Modelfile.go-template",
        "template_tokens:lmdeploy_chat_template.json",
        "greedy:tiny-f16.gguf",
    } < set(gates)
    assert gates["template_tokens:tiny-f16.gguf"]["measured"]["texts"] >= 100
    assert gates["template_tokens:Modelfile.go-template"]["measured"]["texts"] >= 50
    greedy = gates["greedy:tiny-f16.gguf"]["measured"]
    assert greedy["prompts"] == 20
    assert greedy["tokens"] >= 20


def test_a_wrong_template_in_the_gguf(exported: Path) -> None:
    set_chat_template(exported / artifacts.MERGED, CHATML.replace("assistant", "helper"))
    export(exported, ("f16",))
    set_chat_template(exported / artifacts.MERGED, CHATML)
    fails(exported, "template_tokens:tiny-f16.gguf", "where training renders", gguf_types=("f16",))


@pytest.mark.parametrize("name", ["Modelfile.go-template", "lmdeploy_chat_template.json"])
def test_a_wrong_template_for_another_engine(exported: Path, name: str) -> None:
    path = exported / artifacts.EXPORT / name
    path.write_text(path.read_text().replace("|>assistant", "|>helper"))
    fails(exported, f"template_tokens:{name}", "in other tokens than in training", gguf_types=("f16",))


@pytest.mark.parametrize("name", ["Modelfile.go-template", "lmdeploy_chat_template.json"])
def test_a_damaged_or_missing_template_for_another_engine(exported: Path, name: str) -> None:
    path = exported / artifacts.EXPORT / name
    path.write_text("{")
    fails(exported, f"template_tokens:{name}", "cannot be read", gguf_types=("f16",))
    path.unlink()
    fails(exported, f"template_tokens:{name}", "cannot be read", gguf_types=("f16",))


@pytest.mark.parametrize("name", ["Modelfile", "Modelfile.go-template"])
@pytest.mark.parametrize("line", ["SYSTEM", "PARAMETER stop"])
def test_a_lost_line_of_a_modelfile(exported: Path, name: str, line: str) -> None:
    path = exported / artifacts.EXPORT / name
    kept = [text for text in path.read_text().splitlines(keepends=True) if not text.startswith(line)]
    path.write_text("".join(kept))
    fails(exported, f"modelfile:{name}", f"{line} is", gguf_types=("f16",))


def test_a_lost_system_prompt_is_another_rendering(exported: Path) -> None:
    path = exported / artifacts.EXPORT / "Modelfile.go-template"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if "SYSTEM" not in line[:6]))
    gate = "template_tokens:Modelfile.go-template"
    fails(exported, gate, "in other tokens than in training", gguf_types=("f16",))


def test_a_system_prompt_that_ollama_cannot_read_is_not_proved(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("llama_cpp")
    export(out, ("f16",), system="Be\u200bkind.")
    assert "Modelfile leaves out SYSTEM" in capsys.readouterr().out
    reason = read_handoff(out / artifacts.EXPORT / "serve.json").ollama.reason
    assert reason.startswith("Ollama's reader would change SYSTEM; Modelfile leaves out SYSTEM")
    run(verify_step(gguf_types=("f16",)), out)
    gates = read_gates(out)
    assert gates["modelfile:Modelfile"]["verdict"] == "not_proved"
    assert "template_tokens:Modelfile.go-template" not in gates


def test_a_dropped_lora_module(out: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(out / artifacts.ADAPTER, tmp_path / "less")
    weights = load_file(adapter / artifacts.ADAPTER_WEIGHTS)
    kept = {name: value for name, value in weights.items() if "layers.1.self_attn.v_proj" not in name}
    assert 0 < len(kept) < len(weights)
    save_file(kept, adapter / artifacts.ADAPTER_WEIGHTS)
    shutil.rmtree(out / artifacts.MERGED)
    merge_adapter(out / "base", adapter, out / artifacts.MERGED, max_shard_size_bytes=1 << 30)
    fails(out, "merge_logits", "does not predict what the adapter on its base predicts")


def add_start_token(out: Path) -> None:
    """Makes tokenizer and template of a run write a beginning-of-sequence token, as Llama's do."""
    for folder in (out / "base", out / artifacts.MERGED):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        number = tokenizer.token_to_id(START)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{START} $A", pair=f"{START} $A {START} $B", special_tokens=[(START, number)]
        )
        tokenizer.save(str(folder / "tokenizer.json"))
        config = json.loads((folder / "tokenizer_config.json").read_text()) | {
            "bos_token": START,
            "add_bos_token": True,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        set_chat_template(folder, "{{ bos_token }}" + CHATML)
    state_template(out)


def test_a_doubled_start_token(out: Path) -> None:
    pytest.importorskip("llama_cpp")
    add_start_token(out)
    export(out, ("f16",), system="Be kind.")
    run(verify_step(gguf_types=("f16",)), out)
    modelfile = out / artifacts.EXPORT / "Modelfile.go-template"
    text = modelfile.read_text()
    assert START not in text.partition("TEMPLATE")[2]
    modelfile.write_text(text.replace('TEMPLATE """', f'TEMPLATE """{START}'))
    fails(out, "template_tokens:Modelfile.go-template", "in other tokens than in training", gguf_types=("f16",))
    set_chat_template(out / artifacts.MERGED, "{{ bos_token }}{{ bos_token }}" + CHATML)
    fails(out, "template_tokens:merged", "where training renders")


def test_swapped_query_and_key_rows(exported: Path) -> None:
    """Qwen2 keeps the rows of a head as they are; Llama's order, which llama.cpp's converter makes, is another one."""
    header = read_gguf_header(gguf(exported))
    with gguf(exported).open("r+b") as stream:
        for name, heads in (("attn_q", 4), ("attn_k", 2)):
            for kind, dtype in (("weight", "<f2"), ("bias", "<f4")):
                tensor = header.tensors[f"blk.0.{name}.{kind}"]
                stream.seek(tensor.offset)
                values = np.frombuffer(stream.read(tensor.bytes), dtype)
                rows = values.reshape(heads, 2, -1, *tensor.shape[1:])
                stream.seek(tensor.offset)
                stream.write(np.ascontiguousarray(rows.swapaxes(1, 2)).tobytes())
    step: dict[str, Any] = {"gguf_types": ("f16",), "level": "full"}
    fails(exported, "gguf_logits:tiny-f16.gguf", "loses too much", **step)
    assert read_gates(exported)["greedy:tiny-f16.gguf"]["verdict"] == "fail"


@pytest.fixture
def with_adapter_file(out: Path) -> Path:
    """The adapter of a run, which is all that it exported."""
    pytest.importorskip("gguf")
    step = ExportStep(
        name="tiny", merged=True, gguf=GgufConfig(adapter=True), chat_template=None, adapter=artifacts.ADAPTER
    )
    stage.run(step, out)
    run(verify_step(gguf_adapter=True, level="full"), out)
    gate = read_gates(out)["files:tiny-lora.gguf"]
    assert gate["verdict"] == "pass"
    assert gate["measured"]["tensors"] == 2 * gate["measured"]["updates"] > 0
    return out / artifacts.EXPORT / "tiny-lora.gguf"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b".lora_b", b".lora_c", ".lora_b is missing"),
        (b"\x07\0\0\0\0\0\0\0adapter\x0c", b"\x07\0\0\0\0\0\0\0another\x0c", "it is no adapter"),
    ],
)
def test_a_damaged_adapter_file(with_adapter_file: Path, out: Path, old: bytes, new: bytes, reason: str) -> None:
    data = with_adapter_file.read_bytes()
    assert old in data
    with_adapter_file.write_bytes(data.replace(old, new, 1))
    fails(out, "files:tiny-lora.gguf", reason, gguf_adapter=True)


def test_an_adapter_file_that_lost_some_of_it(with_adapter_file: Path, out: Path) -> None:
    header = read_gguf_header(with_adapter_file)
    with with_adapter_file.open("r+b") as stream:
        stream.seek(next(iter(header.tensors.values())).offset)
        stream.write(np.array([np.nan], "<f4").tobytes())
    fails(out, "files:tiny-lora.gguf", "infinite or not a number", gguf_adapter=True, level="full")
    with_adapter_file.write_bytes(with_adapter_file.read_bytes()[:-100])
    fails(out, "files:tiny-lora.gguf", "the file is broken", gguf_adapter=True)
    weights = load_file(out / artifacts.ADAPTER / artifacts.ADAPTER_WEIGHTS)
    dropped = {name: value for name, value in weights.items() if "layers.1.self_attn.v_proj" not in name}
    config = json.loads((out / "base" / "config.json").read_text())
    save_file(dropped, out / artifacts.ADAPTER / artifacts.ADAPTER_WEIGHTS)
    write_adapter(out / artifacts.ADAPTER, config, with_adapter_file, name="tiny")
    save_file(weights, out / artifacts.ADAPTER / artifacts.ADAPTER_WEIGHTS)
    kept, whole = len(dropped) // 2, len(weights) // 2
    fails(out, "files:tiny-lora.gguf", f"it holds {kept} of {whole} updates", gguf_adapter=True)


def test_a_truncated_gguf(exported: Path) -> None:
    data = gguf(exported).read_bytes()
    gguf(exported).write_bytes(data[:-1000])
    fails(exported, "files:tiny-f16.gguf", "the file is broken", gguf_types=("f16",))
    assert "gguf_logits:tiny-f16.gguf" not in read_gates(exported)


def test_truncated_weights_of_the_merged_model(out: Path) -> None:
    (out / WEIGHTS).write_bytes((out / WEIGHTS).read_bytes()[:-1000])
    fails(out, "files:merged", "is broken")


def test_a_missing_tensor(exported: Path) -> None:
    weights = load_file(exported / WEIGHTS)
    save_file({**weights, "model.more": torch.zeros(7)}, exported / WEIGHTS, metadata={"format": "pt"})
    fails(exported, "files:tiny-f16.gguf", "weights, and the model has", gguf_types=("f16",))
    lost = next(name for name in weights if "down_proj" in name)
    save_file({name: value for name, value in weights.items() if name != lost}, exported / WEIGHTS)
    fails(exported, "files:merged", f"{lost} is missing")


def test_a_weight_that_is_no_number(exported: Path) -> None:
    change(exported / WEIGHTS, "down_proj", float("nan"))
    fails(exported, "files:merged", "infinite or not a number", level="full")
    header = read_gguf_header(gguf(exported))
    with gguf(exported).open("r+b") as stream:
        stream.seek(header.tensors["blk.1.ffn_up.weight"].offset)
        stream.write(np.array([np.inf], "<f2").tobytes())
    step: dict[str, Any] = {"level": "full", "gguf_types": ("f16",)}
    fails(exported, "files:tiny-f16.gguf", "blk.1.ffn_up.weight holds a value that is infinite", **step)


def test_a_file_that_is_not_what_the_run_recorded(out: Path) -> None:
    made = artifacts.describe(out, "model", artifacts.MERGED)
    item = {"kind": made.kind, "path": made.path, "sha256": made.sha256, "bytes": made.bytes}
    artifacts.write_json(out / artifacts.RECORD, {"stages": {"merge": {"artifacts": [item]}}})
    run(verify_step(level="full"), out)
    assert read_gates(out)["files:recorded"]["verdict"] == "pass"
    (out / artifacts.MERGED / "config.json").open("a").write("\n")
    fails(out, "files:recorded", "merged is not what was written", level="full")
    artifacts.write_json(out / artifacts.RECORD, {"stages": {"export": {"artifacts": [{**item, "path": "export/x"}]}}})
    fails(out, "files:recorded", "export/x was written and is gone", level="full")
    artifacts.write_json(out / artifacts.RECORD, {"stages": {}})
    run(verify_step(level="full"), out)
    assert read_gates(out)["files:recorded"]["verdict"] == "not_proved"
