from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.serve.conftest import NAME
from tests.train.old_checkpoints import to_schema_2
from tests.train.runs import make_run, train_step
from tunerun import artifacts
from tunerun.commands.target import local_path
from tunerun.config.schema import GgufConfig, ServeConfig
from tunerun.errors import StageError, UserError
from tunerun.export.stage import run as export
from tunerun.formats.trained_base import write_quantisation
from tunerun.plan.placement import Placement
from tunerun.plan.steps import ExportStep, Quantisation
from tunerun.serve.fleet import check_targets
from tunerun.serve.protocol import Ready, ServerSettings
from tunerun.serve.settings import folder_engine
from tunerun.serve.targets import by_weights, resolve_checkpoints, resolve_target
from tunerun.train.stage import run as train

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


def test_an_adapter_is_served_on_the_base_that_it_was_trained_on(copied):
    adapter = add_adapter(copied / "checkpoints" / "step-20" / "adapter")
    whole, kept = resolve_target(copied, checkpoint=20), Quantisation(bits=4, double=True)
    write_quantisation(adapter, kept)
    base, packed = resolve_checkpoints(copied, "run")
    assert (whole.quantisation, packed.quantisation, base.quantisation) == (None, kept, kept)
    assert packed.spec(Placement(), None).quantisation == kept
    assert len(by_weights([base, packed])) == 1
    assert len(by_weights([whole, packed])) == 2
    assert not packed.other_base
    assert "trained on a base in 4 bits" in replace(packed, engine="vllm").other_base


def test_a_checkpoint_is_found_and_a_wrong_one_names_the_others(copied):
    adapter = add_adapter(copied / "checkpoints" / "step-20" / "adapter")
    shutil.copytree(copied / "merged", copied / "checkpoints" / "step-40" / "model")
    assert resolve_target(copied, checkpoint=20).adapter == adapter
    assert resolve_target(copied, checkpoint=40).weights == copied / "checkpoints" / "step-40" / "model"
    with pytest.raises(UserError, match="20, 40"):
        resolve_target(copied, checkpoint=30)


@pytest.mark.parametrize("reader", ["step", "all", "path", "path on a base"])
def test_of_a_checkpoint_of_schema_2_the_average_is_served(copied, tmp_path, reader):
    trained = make_run(tmp_path / "trained")
    train(train_step(max_steps=2, checkpoint_steps=1, ema_decay=0.9), trained)
    wanted = (trained / "checkpoints" / "step-1" / "adapter" / artifacts.ADAPTER_WEIGHTS).read_bytes()
    folder = Path(shutil.copytree(trained / "checkpoints" / "step-1", copied / "checkpoints" / "step-1"))
    to_schema_2(folder)
    assert (folder / "adapter" / artifacts.ADAPTER_WEIGHTS).read_bytes() != wanted
    match reader:
        case "step":
            target = resolve_target(copied, checkpoint=1)
        case "all":
            _, target = resolve_checkpoints(copied, "run")
        case "path":
            target = resolve_target(folder / "adapter")
        case _:
            target = resolve_target(Path(f"{copied / 'merged'}+{folder / 'adapter'}"))
    assert (target.adapter / artifacts.ADAPTER_WEIGHTS).read_bytes() == wanted


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


def test_a_gguf_file_and_a_folder_outside_of_runs_stand_for_themselves(run_dir, tmp_path):
    file = Path(shutil.copy(next((run_dir / "export").glob("*.gguf")), tmp_path))
    target = resolve_target(file)
    assert (target.engine, target.tokenizer, target.stops, target.unchecked) == ("llamacpp", None, (), "")
    folder = resolve_target(Path(shutil.copytree(run_dir / "merged", tmp_path / "mine")))
    assert (folder.engine, folder.name, folder.stops, folder.unchecked) == ("transformers", "mine", (), "")


def test_a_part_of_a_run_is_served_as_the_export_recorded_it(run_dir):
    facts = json.loads((run_dir / "export" / "serve.json").read_text())
    file = run_dir / "export" / facts["default"]
    for target in (resolve_target(file), resolve_target(run_dir / "merged")):
        assert (target.stops, target.context_tokens) == (tuple(facts["stops"]), facts["context"])
    assert resolve_target(file).template_sha256 == facts["template_sha256"]
    assert (resolve_target(file).name, resolve_target(file).weights) == (file.stem, file)


def test_a_file_that_the_export_did_not_write_is_not_taken_for_one(copied):
    (file,) = (copied / "export").glob("*.gguf")
    other = Path(shutil.copy(file, copied / "export" / "other.gguf"))
    assert (resolve_target(other).stops, resolve_target(other).template_sha256) == ((), None)


def test_a_failed_gate_holds_for_every_part_of_the_run_and_through_links(copied, tmp_path):
    (file,) = (copied / "export").glob("*.gguf")
    adapter, checkpoint = add_adapter(copied / "adapter"), add_adapter(copied / "checkpoints" / "step-20" / "adapter")
    folder = Path(shutil.copytree(copied / "merged", copied / "export" / "gptq"))
    link = tmp_path / "link.gguf"
    link.symlink_to(file)
    elsewhere = Path(shutil.copytree(copied / "merged", tmp_path / "elsewhere"))
    parts = (file, link, adapter, folder, copied / "merged", Path(f"{elsewhere}+{adapter}"))
    for part in parts:
        target = resolve_target(part)
        assert (target.unverified, target.unchecked) == ("", f"{copied} was never verified"), part
    (copied / "verify").mkdir()
    gates = [{"name": "merge_logits", "verdict": "fail"}]
    (copied / "verify" / "report.json").write_text(json.dumps({"schema": 1, "passed": False, "gates": gates}))
    for part in parts:
        target = resolve_target(part)
        assert target.unverified.count("merge_logits") == 1, part
        assert target.unchecked == "", part
        with pytest.raises(UserError, match=r"merge_logits(.|\n)*--force"):
            check_targets([target])
    # What a run's gates compare is what it made last.
    assert resolve_target(checkpoint).unverified == resolve_target(copied, checkpoint=20).unverified == ""
    assert resolve_target(elsewhere).unverified == ""


def test_the_runs_template_goes_with_its_adapters(copied):
    adapters = [add_adapter(copied / "adapter"), add_adapter(copied / "checkpoints" / "step-20" / "adapter")]
    plan = json.loads((copied / "plan.json").read_text())
    plan["steps"].insert(0, {"stage": "data", "chat_template": "vicuna"})
    (copied / "plan.json").write_text(json.dumps(plan))
    for adapter in adapters:
        template = resolve_target(adapter).template
        assert template is not None
        assert template.source == "vicuna"


def test_a_template_with_marks_for_training_is_known_again_after_the_export(copied):
    base = json.loads((copied / artifacts.MODEL).read_text())
    (copied / artifacts.MODEL).write_text(json.dumps({**base, "folder": str(copied / "merged")}))
    marked = "{% generation %}{{ '' }}{% endgeneration %}" + (copied / "export" / "chat_template.jinja").read_text()
    (copied / "merged" / "chat_template.jinja").write_text(marked)
    with pytest.raises(UserError, match="chat template"):
        resolve_target(copied / "merged")
    export(ExportStep(name=NAME, merged=True, gguf=GgufConfig(types=("f32",)), chat_template=None), copied)
    for path in (copied, copied / "merged"):
        template = resolve_target(path, engine="transformers").template
        assert template is not None
        assert template.text == marked


def test_what_is_no_model_is_told(tmp_path, run_dir):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(UserError, match="no run directory"):
            resolve_target(path)
    with pytest.raises(UserError, match="checkpoints"):
        resolve_target(run_dir / "merged", checkpoint=1)
    with pytest.raises(UserError, match="GGUF files"):
        resolve_target(run_dir / "merged", engine="llamacpp")
    (file,) = (run_dir / "export").glob("*.gguf")
    with pytest.raises(UserError, match="vllm serves model folders"):
        resolve_target(file, engine="vllm")


@pytest.mark.parametrize("engine", ["vllm", "lmdeploy"])
def test_a_runs_folder_is_served_as_the_export_recorded_it(run_dir, engine):
    facts = json.loads((run_dir / "export" / "serve.json").read_text())
    target = resolve_target(run_dir, engine=engine)
    assert (target.engine, target.weights) == (engine, run_dir / "merged")
    assert (target.stops, target.context_tokens) == (tuple(facts["stops"]), facts["context"])
    server = target.spec(Placement(), None, ServerSettings(python="there")).server
    assert (server.python, server.tool_parser) == ("there", facts["tool_parser"])
    assert server.chat_template == (run_dir / "export" / facts["template"]).read_text(encoding="utf-8")


def test_a_run_without_gguf_is_served_from_its_folders_as_recorded(copied):
    facts = json.loads((copied / "export" / "serve.json").read_text())
    (copied / "export" / facts["default"]).unlink()
    (copied / "export" / "serve.json").write_text(json.dumps({**facts, "default": None, "files": {}}))
    target = resolve_target(copied)
    assert (target.weights, target.stops) == (copied / "merged", tuple(facts["stops"]))
    with pytest.raises(UserError, match="llamacpp serves GGUF files"):
        resolve_target(copied, engine="llamacpp")
    (copied / "merged").rename(copied / "export" / "gptq")
    for path in (copied, copied / "export" / "gptq"):
        target = resolve_target(path, engine="vllm")
        assert (target.engine, target.weights) == ("vllm", copied / "export" / "gptq")
        assert (target.stops, target.context_tokens) == (tuple(facts["stops"]), facts["context"])


def test_auto_prefers_folders_when_something_better_than_transformers_serves_them(run_dir):
    assert resolve_target(run_dir, folders="vllm").engine == "vllm"
    (file,) = (run_dir / "export").glob("*.gguf")
    assert resolve_target(file, folders="vllm").engine == "llamacpp"
    assert resolve_target(run_dir, engine="transformers", folders="vllm").engine == "transformers"
    assert resolve_target(file, engine="ollama").engine == "ollama"


def test_lmdeploy_serves_no_adapter(copied):
    adapter = add_adapter(copied / "adapter")
    shutil.rmtree(copied / "export")
    assert resolve_target(adapter, engine="vllm").adapter == adapter
    with pytest.raises(UserError, match="lmdeploy serves no adapters"):
        resolve_target(adapter, engine="lmdeploy")


def test_a_merged_model_whose_template_was_exchanged_is_not_served(copied):
    file = copied / "merged" / "tokenizer_config.json"
    file.write_text(file.read_text().replace("assistant", "helper"))
    with pytest.raises(UserError, match="chat template"):
        resolve_target(copied, engine="vllm")


def test_an_adapter_is_put_on_the_base_that_is_named_before_it(run_dir, tmp_path):
    (base,) = (run_dir / "export").glob("*.gguf")
    file, folder = gguf_adapter(tmp_path / "kind.gguf"), add_adapter(tmp_path / "brief")
    target = resolve_target(Path(f"{base}+{file}"))
    assert (target.name, target.engine, target.weights, target.adapter) == ("kind", "llamacpp", base, file)
    assert by_weights([target, resolve_target(base)]) == [[target, resolve_target(base)]]
    target = resolve_target(Path(f"{run_dir / 'merged'}+{folder}"))
    assert (target.name, target.weights, target.adapter) == ("brief", run_dir / "merged", folder)
    assert target.template is not None
    assert local_path(f"{base}+{file}") == Path(f"{base}+{file}")
    plus = tmp_path / "a+b.gguf"
    plus.symlink_to(base)
    assert resolve_target(plus).weights == plus


def test_adapters_that_fit_no_base_are_told(run_dir, tmp_path):
    (base,) = (run_dir / "export").glob("*.gguf")
    file, folder = gguf_adapter(tmp_path / "kind.gguf"), add_adapter(tmp_path / "brief")
    for word, what in (
        (f"{file}", "no model by itself.*BASE.gguf"),
        (f"{base}+{folder}", "goes on a model folder.*export.gguf.adapter"),
        (f"{run_dir / 'merged'}+{file}", "goes on a GGUF file"),
        (f"{base}+{base}", "neither an adapter folder nor"),
        (f"{base}+{tmp_path / 'absent'}", "neither an adapter folder nor"),
        (f"{run_dir / 'merged'}+{folder}+{folder}", "no run directory|takes no other on top"),
    ):
        with pytest.raises(UserError, match=what):
            resolve_target(Path(word))
    with pytest.raises(UserError, match="ollama serves no adapters"):
        resolve_target(Path(f"{base}+{file}"), engine="ollama")


def gguf_adapter(path: Path) -> Path:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "qwen2")
    writer.add_type("adapter")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_vllm_is_taken_on_a_gpu_where_it_is_installed(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    gpu, serve = Placement(device="cuda"), ServeConfig()
    assert folder_engine(serve, gpu, str(python)) == "vllm"
    assert folder_engine(serve, Placement(), str(python)) == "transformers"
    assert folder_engine(serve, gpu, str(tmp_path / "absent")) == "transformers"
    assert folder_engine(ServeConfig(engine="llamacpp"), gpu, str(python)) == "transformers"
    assert folder_engine(ServeConfig(engine="lmdeploy"), Placement(), None) == "lmdeploy"


def test_a_reward_model_is_not_served_as_one_that_writes(copied):
    config = copied / "merged" / "config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "architectures": ["Qwen2ForSequenceClassification"]})
    )
    for path, engine in ((copied, "transformers"), (copied / "merged", "auto")):
        with pytest.raises(UserError, match="merged: is a reward model: it gives scores and writes no text"):
            resolve_target(path, engine=engine)


def test_an_adapter_of_a_reward_model_is_not_served(copied):
    adapter = add_adapter(copied / "adapter")
    (adapter / "adapter_config.json").write_text(json.dumps({**ADAPTER, "task_type": "SEQ_CLS"}))
    with pytest.raises(UserError, match="adapter: is a reward model"):
        resolve_target(adapter)


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


def test_a_run_offers_its_base_and_its_checkpoints(copied):
    for step in (100, 20):
        add_adapter(copied / "checkpoints" / f"step-{step}" / "adapter")
    (copied / "checkpoints" / "step-30.partial").mkdir()
    targets = resolve_checkpoints(copied, "bird")
    assert [target.name for target in targets] == ["bird-base", "bird-step-20", "bird-step-100"]
    assert len({target.weights for target in targets}) == 1
    assert targets[0].adapter is None
    assert targets[2].adapter == copied / "checkpoints" / "step-100" / "adapter"


def test_a_run_without_adapters_offers_no_checkpoints(copied):
    with pytest.raises(UserError, match="has no checkpoints"):
        resolve_checkpoints(copied, NAME)
    shutil.copytree(copied / "merged", copied / "checkpoints" / "step-40" / "model")
    with pytest.raises(UserError, match="whole models"):
        resolve_checkpoints(copied, NAME)


def test_a_link_out_of_the_run_is_no_adapter_of_it(copied, tmp_path):
    elsewhere = add_adapter(tmp_path / "elsewhere")
    shutil.rmtree(copied / "export")
    shutil.rmtree(copied / "merged")
    (copied / "adapter").symlink_to(elsewhere)
    (copied / "checkpoints" / "step-20").mkdir(parents=True)
    (copied / "checkpoints" / "step-20" / "adapter").symlink_to(elsewhere)
    with pytest.raises(UserError, match="outside the run"):
        resolve_target(copied)
    with pytest.raises(UserError, match="outside the run"):
        resolve_checkpoints(copied, NAME)
