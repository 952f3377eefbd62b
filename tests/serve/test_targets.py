from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.serve.conftest import NAME
from tunerun import artifacts
from tunerun.errors import StageError, UserError
from tunerun.serve.protocol import Ready
from tunerun.serve.targets import resolve_target

ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "nowhere"}


@pytest.fixture
def copied(run_dir: Path, tmp_path: Path) -> Path:
    """A copy of the run to take things away from."""
    return Path(shutil.copytree(run_dir, tmp_path / "copy"))


def add_adapter(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    return folder


def ready(template: str | None) -> Ready:
    return Ready(context_tokens=512, chat_template=template, bos_token="", eos_token="<|im_end|>")


def test_a_run_is_served_from_its_first_gguf(run_dir):
    target = resolve_target(run_dir)
    facts = json.loads((run_dir / "export" / "serve.json").read_text())
    assert (target.name, target.engine) == (NAME, "llamacpp")
    assert target.weights == run_dir / "export" / facts["default"]
    assert target.tokenizer == run_dir / "merged"
    assert target.stops == tuple(facts["stops"])
    assert target.context_tokens == facts["context"]


def test_a_run_is_served_from_its_folder_by_transformers(run_dir):
    target = resolve_target(run_dir, engine="transformers")
    assert (target.engine, target.weights) == ("transformers", run_dir / "merged")
    assert target.template is not None


def test_without_export_and_merge_the_adapter_is_served_on_its_base(copied):
    shutil.rmtree(copied / "export")
    base = copied.with_name("base")
    (copied / "merged").rename(base)
    record = json.loads((copied / artifacts.MODEL).read_text())
    (copied / artifacts.MODEL).write_text(json.dumps({**record, "folder": str(base)}))
    adapter = add_adapter(copied / "adapter")
    for path in (copied, adapter):
        target = resolve_target(path)
        assert (target.weights, target.adapter, target.tokenizer) == (base, adapter, base)
    assert resolve_target(copied, base=True).adapter is None
    assert resolve_target(copied, base=True).name == f"{NAME}-base"


def test_a_checkpoint_is_found_and_a_wrong_one_names_the_others(copied):
    adapter = add_adapter(copied / "checkpoints" / "step-20" / "adapter")
    shutil.copytree(copied / "merged", copied / "checkpoints" / "step-40" / "model")
    assert resolve_target(copied, checkpoint=20).adapter == adapter
    assert resolve_target(copied, checkpoint=40).weights == copied / "checkpoints" / "step-40" / "model"
    with pytest.raises(UserError, match="20, 40"):
        resolve_target(copied, checkpoint=30)


def test_the_runs_template_goes_with_the_base(copied):
    plan = json.loads((copied / "plan.json").read_text())
    plan["steps"].insert(0, {"stage": "data", "chat_template": "vicuna"})
    (copied / "plan.json").write_text(json.dumps(plan))
    template = resolve_target(copied, base=True).template
    assert template is not None
    assert "ASSISTANT:" in template.render([{"role": "user", "content": "x"}], generation_prompt=True)


def test_a_failed_gate_is_remembered(copied):
    report = copied / "verify" / "report.json"
    report.parent.mkdir()
    gates = [{"name": "merge", "verdict": "pass"}, {"name": "gguf_f32", "verdict": "fail"}]
    for passed in (True, False):
        report.write_text(json.dumps({"schema": 1, "passed": passed, "gates": gates}))
        assert ("gguf_f32" in resolve_target(copied).unverified) != passed


def test_a_run_that_was_never_verified_says_so_and_its_base_model_does_not(copied):
    assert resolve_target(copied).unchecked == f"{copied} was never verified"
    assert resolve_target(copied, base=True).unchecked == ""
    (copied / "verify").mkdir()
    (copied / "verify" / "report.json").write_text(json.dumps({"schema": 1, "passed": True, "gates": []}))
    assert resolve_target(copied).unchecked == ""


def test_a_gguf_file_and_a_folder_stand_for_themselves(run_dir):
    (file,) = (run_dir / "export").glob("*.gguf")
    assert (resolve_target(file).engine, resolve_target(file).tokenizer) == ("llamacpp", None)
    folder = resolve_target(run_dir / "merged")
    assert (folder.engine, folder.name, folder.stops) == ("transformers", "merged", ())


def test_what_is_no_model_is_told(tmp_path, run_dir):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(UserError, match="no run directory"):
            resolve_target(path)
    with pytest.raises(UserError, match="checkpoints"):
        resolve_target(run_dir / "merged", checkpoint=1)
    with pytest.raises(UserError, match="GGUF files"):
        resolve_target(run_dir / "merged", engine="llamacpp")
    with pytest.raises(UserError, match="vLLM"):
        resolve_target(run_dir, engine="vllm")


def test_an_unfinished_run_has_nothing_to_serve(copied):
    shutil.rmtree(copied / "export")
    shutil.rmtree(copied / "merged")
    with pytest.raises(UserError, match="no model yet"):
        resolve_target(copied)


def test_another_template_in_the_file_than_exported_is_an_error(run_dir):
    target = resolve_target(run_dir)
    text = (run_dir / "merged" / "tokenizer_config.json").read_text()
    template = target.chat_template(ready(json.loads(text)["chat_template"]))
    assert template is not None
    assert template.variables["eos_token"] == "<|im_end|>"
    with pytest.raises(StageError, match="Export again"):
        target.chat_template(ready("{{ messages }}"))
