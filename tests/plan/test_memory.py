import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.plan.test_shape import option
from tunerun.config.schema import ShapeConfig
from tunerun.errors import UserError
from tunerun.plan.memory import Work, layers_with_gradients, memory, trainable_parameters
from tunerun.plan.shape import Sizes, sizes

SEVEN_B = sizes(option("qwen2.5-7b").shape)
LORA = Work(
    objective="sft",
    method="lora",
    rank=16,
    target_modules=("all-linear",),
    modules_to_save=(),
    row_tokens=2048,
    global_batch_size=16,
    precision="bf16",
    device="cuda",
)
FULL = replace(LORA, method="full")


def parts(work: Work, size: Sizes = SEVEN_B, *, recompute: bool = False):
    return memory(size, work, micro_batch_size=1, activation_checkpointing=recompute)


def test_lora_on_every_linear_layer_has_as_many_weights_as_peft_prints():
    # "trainable params: 40,370,176" for rank 16 on the seven projections of Qwen2.5-7B.
    assert trainable_parameters(SEVEN_B, LORA) == 40_370_176


def test_weights_are_counted_by_module():
    queries = replace(LORA, target_modules=("q_proj",), rank=8)
    assert trainable_parameters(SEVEN_B, queries) == 28 * 8 * (3584 + 3584)
    assert trainable_parameters(SEVEN_B, replace(queries, method="dora")) == 28 * (8 * (3584 + 3584) + 3584)
    saved = replace(queries, modules_to_save=("embed_tokens", "v_proj"))
    more = 152064 * 3584 + 28 * 3584 * 512
    assert trainable_parameters(SEVEN_B, saved) == trainable_parameters(SEVEN_B, queries) + more


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"target_modules": ("q_porj",)},
            "method.target_modules: the model has no module `q_porj`. Did you mean q_proj",
        ),
        ({"modules_to_save": ("embed",)}, "method.modules_to_save: the model has no module `embed`"),
        ({"method": "freeze", "layers": 29}, "method.layers: 29 layers are more than the model's 28"),
    ],
)
def test_what_cannot_be_counted_is_refused(change, message):
    with pytest.raises(UserError) as error:
        trainable_parameters(SEVEN_B, replace(LORA, **change))
    assert message in str(error.value)


def test_full_training_in_bf16_takes_eighteen_bytes_a_weight():
    found = parts(FULL)
    states = found.weights_bytes + found.gradients_bytes + found.optimiser_bytes
    assert states == 18 * SEVEN_B.parameters


@pytest.mark.parametrize(
    ("strategy", "bytes_each"),
    [("ddp", 6 + 8 + 8), ("zero1", 2 + 6 + 12 / 8), ("zero2", 2 + (4 + 12) / 8), ("zero3", 18 / 8), ("fsdp2", 16 / 8)],
)
def test_states_are_divided_as_the_strategy_says(strategy, bytes_each):
    found = parts(replace(FULL, strategy=strategy, world_size=8, whole_numbers=0))
    states = found.weights_bytes + found.gradients_bytes + found.optimiser_bytes
    whole = 2 * (2 * SEVEN_B.layer_parameters + SEVEN_B.embedding_parameters) if strategy in ("zero3", "fsdp2") else 0
    assert states == pytest.approx(bytes_each * SEVEN_B.parameters + whole, rel=1e-6)


def test_zero3_keeps_small_parameters_whole_beside_their_parts():
    spread = replace(LORA, strategy="zero3", world_size=8)
    none, ours, all_ = (
        parts(replace(spread, whole_numbers=numbers)).weights_bytes for numbers in (0, 100_000, 1 << 40)
    )
    # Norms and biases; of the adapter all but the matrices that are as long as the feed-forward is wide.
    small = 28 * (3584 + 2 * 512 + 2 * 3584) + 3584
    adapter = 28 * 16 * ((3584 + 3584) * 2 + (3584 + 512) * 2 + 3 * 3584)
    assert ours - none == 2 * (small + adapter)
    assert all_ - none == 2 * (SEVEN_B.parameters + trainable_parameters(SEVEN_B, LORA))
    assert parts(replace(spread, strategy="zero2", whole_numbers=0)) == parts(replace(spread, strategy="zero2"))


def test_offload_moves_bytes_to_the_host_and_loses_none():
    for strategy in ("zero2", "zero3", "fsdp2"):
        kept = parts(replace(FULL, strategy=strategy, world_size=8))
        moved = parts(replace(FULL, strategy=strategy, world_size=8, offload=True))
        assert moved.optimiser_bytes == 0
        assert moved.host_bytes > 0
        assert kept.total_bytes == pytest.approx(moved.total_bytes + moved.host_bytes, abs=2)


def test_an_optimiser_with_smaller_state_takes_less_and_a_paged_one_takes_it_from_the_host():
    full = replace(LORA, method="full", precision="fp32")
    plain, small = (parts(replace(full, state_bytes=size)) for size in (8.0, 2.0))
    assert plain.optimiser_bytes == 4 * small.optimiser_bytes
    paged = parts(replace(full, paged=True))
    assert (paged.optimiser_bytes, paged.host_bytes) == (0, plain.optimiser_bytes)


def test_qlora_holds_the_linear_layers_in_four_bits():
    saved = parts(LORA).weights_bytes - parts(replace(LORA, method="qlora")).weights_bytes
    linear = SEVEN_B.layers * SEVEN_B.layer_linear_parameters
    copy = 2 * 18944 * 3584
    assert (saved + copy) / linear == pytest.approx(2 - 4.127 / 8, abs=1e-3)


def test_qlora_in_eight_bits_and_without_double_quantisation_holds_more():
    four = parts(replace(LORA, method="qlora")).weights_bytes
    linear = SEVEN_B.layers * SEVEN_B.layer_linear_parameters
    single, eight = (
        parts(replace(LORA, method="qlora", **change)).weights_bytes
        for change in ({"double_quant": False}, {"bits": 8})
    )
    assert (single - four) / linear * 8 == pytest.approx(0.373, abs=1e-3)
    assert (eight - four) / linear * 8 == pytest.approx(8 - 4.127, abs=1e-3)


def test_freezing_moves_and_keeps_the_last_layers_only():
    two = replace(FULL, method="freeze", layers=2)
    trainable = trainable_parameters(SEVEN_B, two)
    assert trainable == 2 * SEVEN_B.layer_parameters
    found = parts(two)
    assert found.optimiser_bytes == 8 * trainable
    assert found.weights_bytes == 2 * (SEVEN_B.parameters - trainable) + 4 * trainable
    assert found.activations_bytes == pytest.approx(parts(FULL).activations_bytes / 14, rel=0.01)


def test_freezing_counts_what_patterns_name_and_reaches_down_to_it():
    head = replace(FULL, method="freeze", layers=1, patterns=("lm_head.*", "model.norm.*"))
    assert trainable_parameters(SEVEN_B, head) == SEVEN_B.layer_parameters + SEVEN_B.embedding_parameters + 3584
    assert layers_with_gradients(SEVEN_B, head) == 1
    norms = replace(FULL, method="freeze", layers=0, patterns=("*layernorm*",))
    assert trainable_parameters(SEVEN_B, norms) == 28 * 2 * 3584
    assert layers_with_gradients(SEVEN_B, norms) == 28


def test_a_module_may_have_a_rank_of_its_own():
    other = replace(LORA, target_modules=("q_proj",), rank_pattern={r"layers\.0\.self_attn\.q_proj": 32})
    assert trainable_parameters(SEVEN_B, other) == (27 * 16 + 32) * (3584 + 3584)


def test_a_preference_sample_takes_two_rows_and_no_second_model():
    assert parts(replace(LORA, objective="dpo")).activations_bytes == 2 * parts(LORA).activations_bytes
    assert parts(replace(LORA, objective="dpo")).weights_bytes == parts(LORA).weights_bytes
    assert parts(replace(FULL, objective="dpo")).weights_bytes == parts(FULL).weights_bytes


def test_computing_activations_again_keeps_a_row_for_each_layer_and_one_layer():
    assert parts(LORA, recompute=True).activations_bytes < parts(LORA).activations_bytes / 10


def test_a_peak_that_another_trainer_reports_is_met():
    # torchtune's README: Llama-3.1-8B, LoRA, bf16, 2 rows of 2048, activations recomputed: 16.2 GiB allocated.
    llama = sizes(option("llama3.1-8b").shape)
    found = memory(llama, LORA, micro_batch_size=2, activation_checkpointing=True)
    assert (found.total_bytes - found.runtime_bytes) / 2**30 == pytest.approx(16.2, rel=0.1)


def measure(config: dict, rows: int, method: str, mode: str, what: str) -> dict:
    script = Path(__file__).with_name("train_and_measure.py")
    command = [sys.executable, str(script), json.dumps(config), "256", str(rows), method, mode, what]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def shape_of(config: dict) -> Sizes:
    shape = ShapeConfig(
        architecture="Qwen2ForCausalLM",
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        vocabulary=config["vocab_size"],
        tied_embeddings=True,
        attention_bias=True,
    )
    return sizes(shape)


def qwen2(layers: int, hidden: int, vocabulary: int) -> dict:
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": 2,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
    }


def planned(config: dict, method: str) -> tuple[Sizes, Work]:
    work = replace(LORA, method=method, row_tokens=256, precision="fp32", device="cpu", layers=1)
    return shape_of(config), work


@pytest.mark.parametrize("method", ["lora", "full", "freeze", "dora"])
def test_layers_keep_what_is_planned_and_the_counts_are_exact(method):
    config = qwen2(2, 128, 512)
    facts = measure(config, 2, method, "keep", "kept")
    size, work = planned(config, method)
    assert facts["trainable"] == trainable_parameters(size, work)
    assert facts["parameters"] - (facts["trainable"] if method in ("lora", "dora") else 0) == size.parameters
    kept = memory(size, replace(work, device="cuda"), micro_batch_size=2, activation_checkpointing=False)
    assert kept.activations_bytes == pytest.approx(facts["kept_bytes"], rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("config", "rows"), [(qwen2(4, 256, 6144), 8), (qwen2(8, 512, 32000), 4)], ids=["5M", "42M"])
@pytest.mark.parametrize(("method", "mode"), [("lora", "keep"), ("full", "keep"), ("full", "recompute")])
def test_the_peak_of_a_real_run_is_near_the_plan(config, rows, method, mode):
    facts = measure(config, rows, method, mode, "peak")
    size, work = planned(config, method)
    found = memory(size, work, micro_batch_size=rows, activation_checkpointing=mode == "recompute")
    assert found.total_bytes == pytest.approx(facts["peak_bytes"], rel=0.25)
