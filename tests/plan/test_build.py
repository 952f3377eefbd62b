"""The plan of a run: its steps, what it decides, and what a step's fingerprint holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tunerun import artifacts
from tunerun.config import resolve, typed
from tunerun.config.schema import RunConfig
from tunerun.errors import UserError
from tunerun.machine import Gpu, Machine
from tunerun.plan import build, plan, step_keys, steps
from tunerun.plan.dataset import DataSize

CPU = Machine(cores=4, memory_bytes=16 << 30, gpus=(), python="3.12.0")
H200 = Gpu(name="NVIDIA H200", memory_bytes=140 << 30, compute_capability="9.0")
TWO_GPUS = Machine(cores=16, memory_bytes=128 << 30, gpus=(H200, H200), python="3.12.0")
SHAPE = {
    "architecture": "Qwen2ForCausalLM", "layers": 2, "hidden": 64, "intermediate": 128, "heads": 4, "kv_heads": 2,
    "vocabulary": 1000, "tied_embeddings": True, "attention_bias": True, "context": 4096,
}  # fmt: skip


def config(**changes) -> RunConfig:
    data = {
        "name": "small",
        "run_dir": "/runs/small",
        "model": {"path": "org/model", "shape": SHAPE},
        "data": {"path": ["rows.jsonl"]},
        "export": {"gguf": {"types": ["f16"]}},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            data.setdefault(section, {})[name] = value
        else:
            data[section] = value
    built, problems = typed.build(RunConfig, data)
    assert problems == []
    return built


def planned(machine=CPU, size=None, **changes) -> plan.Plan:
    return build.build(config(**changes), build.Facts(machine=machine, data=size))


def names(found: plan.Plan) -> list[str]:
    return [step.stage for step in found.steps]


def step(found: plan.Plan, stage: str):
    return next(item for item in found.steps if item.stage == stage)


def test_one_process_is_single_whatever_the_strategy_unless_it_offloads():
    found = planned(hardware__strategy="fsdp2")
    assert found.train.placement.strategy == "single"
    assert any("fsdp2 is trained as single" in note for note in found.notes)
    assert planned(hardware__strategy="zero2", hardware__offload=True).train.placement.strategy == "zero2"
    assert planned(hardware__strategy="ddp", hardware__processes=2).train.placement.strategy == "ddp"


def test_a_lora_run_hands_its_adapter_to_merge_eval_and_verify():
    found = planned()
    assert names(found) == ["model", "data", "train", "eval", "merge", "export", "verify"]
    assert step(found, "eval").adapter == step(found, "merge").adapter == step(found, "verify").adapter == "adapter"
    assert step(found, "eval").tuned is None
    assert step(found, "export").merged is True
    assert step(found, "verify").merged is True


def test_full_training_writes_merged_itself_and_has_nothing_to_merge():
    found = planned(method__kind="full")
    assert names(found) == ["model", "data", "train", "eval", "export", "verify"]
    assert (step(found, "eval").adapter, step(found, "eval").tuned) == (None, "merged")
    assert step(found, "verify").adapter is None
    assert step(found, "export").merged is True
    assert any("nothing to merge" in note for note in found.notes)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_checkpoints_with_an_average_hold_the_weights_twice(method):
    plain, averaged = (planned(method__kind=method, train={"ema_decay": decay}).estimate for decay in (None, 0.9))
    added = averaged.disk.checkpoints_bytes - plain.disk.checkpoints_bytes
    assert added == 4 * averaged.trainable_parameters


def test_what_answers_cost_while_training_is_told():
    changes = {"train": {"max_steps": 25, "eval_steps": 10, "generate_rows": 20}, "data__eval_rows": 30}
    (note,) = [note for note in planned(**changes).notes if "train.generate_rows" in note]
    assert "up to 20 answers of up to 64 tokens are generated every 10 steps" in note
    assert "192 passes through the model, 3 x 64, 3 times" in note
    assert not [note for note in planned().notes if "train.generate_rows" in note]


def test_an_adapter_made_elsewhere_is_merged_and_exported_without_training():
    found = planned(stages=["merge", "export", "verify"], model__adapter="/else/adapter")
    assert names(found) == ["model", "merge", "export", "verify"]
    assert step(found, "merge").adapter == step(found, "verify").adapter == "/else/adapter"
    assert (found.train, found.volume, found.estimate) == (None, None, None)


@pytest.mark.parametrize(("merge_base", "bits"), [(None, 4), ("dequantised", 4), ("full_precision", None)])
def test_a_qlora_adapter_meets_the_same_base_in_eval_merge_and_verify(merge_base, bits):
    export = {"gguf": {"types": ["f16"]}, "merge_base": merge_base}
    found = planned(method__kind="qlora", export=export)
    steps = [step for step in found.steps if step.stage in ("eval", "merge", "verify")]
    assert [step.quantisation and step.quantisation.bits for step in steps] == [bits] * 3
    assert any("export.merge_base=dequantised" in note for note in found.notes) == (merge_base is None)


def test_an_adapter_that_training_continues_is_not_the_one_that_is_merged():
    found = planned(model__adapter="/else/adapter")
    assert step(found, "train").model.adapter == "/else/adapter"
    assert step(found, "merge").adapter == "adapter"


def test_a_model_that_was_not_trained_here_is_evaluated_as_it_is():
    found = planned(stages=["data", "eval"])
    assert names(found) == ["model", "data", "eval"]
    assert (step(found, "eval").adapter, step(found, "eval").tuned) == (None, None)
    assert step(found, "model").weights is True


def test_a_local_model_is_exported_as_it_is_with_the_chosen_template():
    found = planned(stages=["export"], model__chat_template="chatml")
    assert names(found) == ["model", "export"]
    assert (step(found, "export").merged, step(found, "export").chat_template) == (False, "chatml")


def test_a_merged_model_already_has_the_template():
    found = planned(model__chat_template="chatml")
    assert step(found, "merge").chat_template == "chatml"
    assert step(found, "export").chat_template is None


def test_preparing_data_needs_no_weights():
    found = planned(stages=["data"])
    assert names(found) == ["model", "data"]
    assert step(found, "model").weights is False


def test_bounds_of_what_is_not_exported_are_warned_of():
    bounds = {"q4_k_m": {"mean_kl_nats": 0.1}, "f16": {"mean_kl_nats": 0.1}, "bnb4": {"mean_kl_nats": 0.1}}

    def told(**changes) -> list[str]:
        return [text.split()[0] for text in planned(verify={"bounds": bounds}, **changes).warnings if "bounds" in text]

    assert told() == ["verify.bounds.q4_k_m", "verify.bounds.bnb4"]
    assert told(export={"bnb4": {"write": True}}) == ["verify.bounds.q4_k_m", "verify.bounds.f16"]
    assert told(export={"gguf": {"types": ["f16", "q4_k_m"]}, "bnb4": {"write": True}}) == []
    assert told(stages=["data", "train", "merge", "export"]) == []


def test_an_adapter_as_gguf_is_looked_through_where_it_is_written():
    export = {"gguf": {"types": [], "adapter": True}}
    found = step(planned(export=export), "verify")
    assert (found.gguf_adapter, found.gguf_types) == (True, ())
    assert not step(planned(), "verify").gguf_adapter
    assert not step(planned(export=export, stages=["data", "train", "merge", "verify"]), "verify").gguf_adapter


def test_verify_off_is_no_step():
    assert "verify" not in names(planned(verify__level="off"))


def test_serve_comes_last():
    stages = ["data", "train", "merge", "export", "serve"]
    assert names(planned(stages=stages))[-1] == "serve"


def test_pretraining_is_evaluated_without_a_chat_template():
    found = planned(objective__kind="pretrain", method__kind="full")
    assert step(found, "eval").chat is False
    assert step(planned(), "eval").chat is True


@pytest.mark.parametrize(
    ("machine", "changes", "expected"),
    [
        (CPU, {}, ("cpu", "fp32", 1, 4)),
        (CPU, {"hardware__threads": 2}, ("cpu", "fp32", 1, 2)),
        (CPU, {"hardware__precision": "bf16"}, ("cpu", "bf16", 1, 4)),
        (CPU, {"hardware__gpu": "h200"}, ("cuda", "bf16", 1, 4)),
        (CPU, {"hardware__gpu": "t4"}, ("cuda", "fp32", 1, 4)),
        (CPU, {"hardware__strategy": "ddp", "hardware__processes": 2}, ("cpu", "fp32", 2, 2)),
        (TWO_GPUS, {}, ("cuda", "bf16", 1, 16)),
        (TWO_GPUS, {"hardware__strategy": "ddp"}, ("cuda", "bf16", 2, 8)),
        (TWO_GPUS, {"hardware__device": "cpu"}, ("cpu", "fp32", 1, 16)),
        (TWO_GPUS, {"hardware__precision": "fp32"}, ("cuda", "fp32", 1, 16)),
    ],
)
def test_training_is_placed_by_the_machine_and_the_config(machine, changes, expected):
    placement = step(planned(machine, **changes), "train").placement
    assert (placement.device, placement.precision, placement.processes, placement.threads) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"train__max_steps": 10}, False),
        ({"data__packing": False}, False),
        ({"method__kind": "qlora"}, False),
        ({"hardware__device": "cpu", "hardware__gpu": None}, False),
        ({"train__compile": False}, False),
        ({"train__max_steps": 10, "train__compile": True}, True),
    ],
)
def test_layers_are_compiled_where_shapes_stay_and_training_is_long(changes, expected):
    long = {"hardware__gpu": "h200", "data__packing": True, "data__max_length": 4096, "train__max_steps": 10**9}
    assert step(planned(**{**long, **changes}), "train").compile == expected


def test_a_cpu_with_bf16_is_told_of_it():
    fast = replace(CPU, cpu_bf16=True)
    assert any("hardware.precision=bf16" in note for note in planned(fast).notes)
    for machine, changes in ((CPU, {}), (fast, {"hardware__precision": "bf16"}), (fast, {"hardware__gpu": "h200"})):
        assert not any("this CPU has bf16" in note for note in planned(machine, **changes).notes)


def test_stages_of_one_process_use_all_cores_whatever_training_does():
    found = planned(hardware__strategy="ddp", hardware__processes=4)
    assert step(found, "train").placement.threads == 1
    assert step(found, "eval").placement.threads == step(found, "verify").placement.threads == 4
    assert step(found, "eval").placement.processes == 1


@pytest.mark.parametrize(("batch", "processes"), [(1, 1), (6, 1), (16, 1), (48, 1), (6, 2), (16, 2), (48, 2)])
def test_micro_batch_times_accumulation_times_processes_is_the_batch(batch, processes):
    changes = {"hardware__strategy": "ddp", "hardware__processes": 2} if processes == 2 else {}
    train = step(planned(train__global_batch_size=batch, **changes), "train")
    assert train.micro_batch_size * train.accumulation_steps * train.placement.world_size == batch


def test_a_micro_batch_that_is_set_is_kept():
    train = step(planned(train__micro_batch_size=2, train__global_batch_size=8), "train")
    assert (train.micro_batch_size, train.accumulation_steps) == (2, 4)


def test_without_a_shape_there_is_no_estimate_and_a_note_says_so():
    found = planned(model={"path": "org/model"})
    assert found.estimate is None
    assert step(found, "train").micro_batch_size == 1
    assert any("shape is unknown" in note for note in found.notes)


def test_the_steps_follow_from_rows_epochs_and_batch():
    volume = planned(
        size=DataSize(rows=110, tokens=11000, longest=600), data__eval_fraction=0.1, train__epochs=2.0
    ).volume
    # 99 rows of 100 tokens twice, 16 at a time.
    assert (volume.rows, volume.optimiser_steps, volume.tokens) == (99, 12, 19200)
    assert planned(size=DataSize(rows=110, tokens=11000, longest=600), train__max_steps=7).volume.optimiser_steps == 7


def test_packing_makes_fewer_steps():
    size = DataSize(rows=1000, tokens=100_000, longest=600)
    packed = planned(size=size, data__packing=True, data__max_length=1000).volume
    assert packed.optimiser_steps < planned(size=size, data__max_length=1000).volume.optimiser_steps
    assert packed.rows == 1000


def test_what_may_go_wrong_is_a_warning():
    assert any("no rows are held out" in text for text in planned().warnings)
    assert any("trust_remote_code" in text for text in planned(model__trust_remote_code=True).warnings)
    big = {**SHAPE, "layers": 80, "hidden": 8192, "intermediate": 28672, "heads": 64, "vocabulary": 152_000}
    assert any("are needed on each device" in text for text in planned(model={"path": "m", "shape": big}).warnings)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method__kind": "full"},
        {"stages": ["merge", "export"], "model__adapter": "/else"},
        {"model": {"path": "org/model"}},
        {"data__columns": {"user": "问题"}, "eval__prompts": ["你好"], "stages": ["data", "eval", "export", "serve"]},
    ],
)
def test_a_plan_survives_json(changes, tmp_path):
    found = planned(size=DataSize(rows=10, tokens=100, longest=600), **changes)
    artifacts.write_json(tmp_path / "plan.json", plan.to_json(found))
    assert plan.read(tmp_path / "plan.json") == found


def test_a_plan_of_the_first_version_is_read(tmp_path):
    data = plan.to_json(planned())
    del data["verification"]
    data["estimate"] |= {"verify_flops": 1.0, "verify_seconds_low": None, "verify_seconds_high": None}
    artifacts.write_json(tmp_path / "plan.json", {**data, "schema": 1})
    assert plan.read(tmp_path / "plan.json") == replace(planned(), verification=None)


def test_a_plan_of_a_newer_version_is_refused(tmp_path):
    artifacts.write_json(tmp_path / "plan.json", {**plan.to_json(planned()), "schema": 99})
    with pytest.raises(UserError, match=r"plan\.json: was written by a newer tunerun \(schema 99"):
        plan.read(tmp_path / "plan.json")


def test_a_step_that_lost_a_key_is_refused():
    data = steps.to_json(step(planned(), "merge"))
    del data["adapter"]
    with pytest.raises(ValueError, match=r"merge\.adapter: is missing"):
        steps.from_json(data)


ALL = {"stages": ["data", "train", "eval", "merge", "export", "verify", "serve"]}


def fingerprints(**changes) -> dict[str, dict[str, object]]:
    return {item.stage: step_keys.fingerprint_keys(item) for item in planned(**{**ALL, **changes}).steps}


def changed(**changes) -> set[str]:
    before, after = fingerprints(), fingerprints(**changes)
    return {stage for stage in before if before[stage] != after[stage]}


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"serve__port": 9000}, {"serve"}),
        ({"track__tensorboard": True}, set()),
        ({"env__cache_dir": "/elsewhere"}, set()),
        ({"train__log_steps": 5}, set()),
        ({"train__checkpoint_steps": 5}, set()),
        ({"train__learning_rate": 0.5}, {"train"}),
        # What is trained on reaches training through the fingerprint of the data stage.
        ({"data__eval_fraction": 0.1}, {"data"}),
        ({"eval__prompts": ["hello"]}, {"eval", "verify"}),
        ({"export__gguf": {"types": ["q8_0"]}}, {"export", "verify"}),
        ({"verify__level": "full"}, {"verify"}),
        ({"name": "other"}, {"export"}),
        ({"model__chat_template": "chatml"}, {"data", "train", "eval", "merge", "verify"}),
    ],
)
def test_a_key_reaches_only_the_stages_whose_results_it_changes(changes, stages):
    assert changed(**changes) == stages


def test_the_run_directory_reaches_no_fingerprint():
    assert changed(run_dir="/runs/other") == set()


def test_what_is_published_is_what_the_run_makes_unless_it_is_named():
    def chosen(**changes):
        stages = ["data", "train", "merge", "export", "publish"]
        (step,) = (step for step in planned(stages=stages, **changes).steps if step.stage == "publish")
        return step.artifacts

    assert chosen(publish={"repo": "a/b"}) == ("merged", "gguf")
    assert chosen(publish={"repo": "a/b"}, export={"bnb4": {"write": True}}) == ("merged", "bnb4")
    assert chosen(publish={"repo": "a/b"}, export={"gguf": {"adapter": True}}) == ("merged", "gguf")
    assert chosen(publish={"repo": "a/b", "artifacts": ["gguf"]}) == ("gguf",)


def test_the_system_prompt_of_all_data_goes_to_the_servers():
    def served(**changes):
        (step,) = (step for step in planned(**changes).steps if step.stage == "export")
        return step.system

    assert served() is None
    assert served(data__system="Be kind.") == "Be kind."
    assert served(data__system="Be kind.", export={"gguf": {"types": ["f16"]}, "system": ""}) is None
    sources = {"a": {"path": ["a.jsonl"]}, "b": {"path": ["b.jsonl"], "system": "Be brief."}}
    assert served(data={"system": "Be kind.", "sources": sources}) is None


def test_without_a_limit_the_longest_row_is_planned_for_up_to_the_context():
    size = DataSize(rows=1000, tokens=100_000, longest=200)
    short = planned(size=size, data__max_length=None)
    assert short.train.micro_batch_size > planned(size=size).train.micro_batch_size
    assert "planned for rows of 264 tokens, the longest of the first rows: data.max_length=null" in " ".join(
        short.notes
    )
    unknown = planned(data__max_length=None)
    assert "planned for rows of 4,096 tokens, the model's context" in " ".join(unknown.notes)
    longest = planned(size=replace(size, longest=9000), data__max_length=None)
    assert longest.estimate.step_tokens == unknown.estimate.step_tokens == 16 * 4096


@pytest.mark.parametrize(("longest", "packing", "told"), [(200, False, True), (200, True, False), (600, False, False)])
def test_a_limit_far_above_the_longest_row_is_told(longest, packing, told):
    size = DataSize(rows=1000, tokens=100_000, longest=longest)
    notes = " ".join(planned(size=size, data__packing=packing).notes)
    assert ("planned for rows of data.max_length=2048; the longest of the first rows has about 200" in notes) == told


@pytest.mark.parametrize(
    ("changes", "engines"),
    [
        ({}, ("llamacpp",)),
        ({"export": {"gguf": {"types": []}}}, ("transformers",)),
        ({"verify__level": "full"}, ("llamacpp", "transformers")),
        ({"serve__engine": "transformers"}, ("transformers",)),
        ({"serve__engine": "vllm"}, ("llamacpp",)),
        ({"serve__engine": "vllm", "verify__level": "full"}, ("vllm", "llamacpp", "transformers")),
        ({"serve__engine": "ollama"}, ("llamacpp",)),
        ({"serve__engine": "ollama", "export": {"gguf": {"types": []}}}, ("transformers",)),
        ({"serve__engine": "lmdeploy", "stages": ["data", "train", "export", "verify"]}, ("llamacpp",)),
        ({"serve__engine": "transformers", "verify__level": "full"}, ("transformers", "llamacpp")),
        (
            {"verify__level": "full", "env": {"serve": {"python": "vllm/bin/python"}}},
            ("llamacpp", "transformers", "vllm"),
        ),
    ],
)
def test_verification_serves_by_the_cheapest_engine_or_by_all_at_hand(changes, engines):
    (step,) = (step for step in planned(**changes).steps if step.stage == "verify")
    assert step.engines == engines


@pytest.mark.parametrize(
    ("serve", "keys"),
    [
        ({"context": 512}, {"llamacpp": ("serve.context=512",), "transformers": ("serve.context=512",)}),
        ({"port": 9, "max_n": 1, "max_prompt_tokens": 3}, {}),
        (
            {"engine": "vllm", "gpus": 2, "extra_args": {"max_num_seqs": 8, "dtype": "a b"}},
            {"vllm": ("serve.gpus=2", 'serve.extra_args={max_num_seqs:8,dtype:"a b"}')},
        ),
    ],
)
def test_verification_starts_an_engine_with_what_the_serve_stage_starts_it_with(serve, keys):
    found = planned(verify__level="full", serve=serve)
    assert step(found, "verify").serve_keys == keys
    # As `tunerun serve` reads them.
    for engine, arguments in keys.items():
        read = resolve.rebuild({}, [f"serve.engine={engine}", *arguments], section=("serve.",)).serve
        assert (read.context, read.gpus, read.extra_args) == tuple(
            serve.get(key, default) for key, default in (("context", None), ("gpus", None), ("extra_args", {}))
        )
