import json
from dataclasses import replace
from typing import get_args

import pytest

from tests.plan.test_memory import FULL, LORA
from tests.plan.test_shape import option
from tunerun.config import typed
from tunerun.config.schema import Bnb4Config, ExportConfig, GgufConfig, GgufType, GptqConfig
from tunerun.errors import UserError
from tunerun.machine import Gpu, Machine
from tunerun.plan import devices
from tunerun.plan.estimate import GGUF_BITS, Estimate, choose, disk, estimate, flops_per_token, step_seconds
from tunerun.plan.memory import memory
from tunerun.plan.shape import sizes

SEVEN_B = sizes(option("qwen2.5-7b").shape)
NO_DISK = disk(SEVEN_B, LORA, checkpoints=0, merged=False, export=ExportConfig())


@pytest.mark.parametrize(
    ("name", "full", "lora"), [("qwen2.5-0.5b", 3.49, 2.50), ("qwen2.5-1.5b", 10.3, 7.23), ("qwen2.5-7b", 44.9, 30.7)]
)
def test_operations_are_those_counted_by_hand_at_4096_tokens(name, full, lora):
    size = sizes(option(name).shape)
    for work, billions in ((FULL, full), (LORA, lora)):
        work = replace(work, row_tokens=4096)
        assert flops_per_token(size, work, activation_checkpointing=False) / 1e9 == pytest.approx(billions, rel=5e-3)


def test_operations_reproduce_the_share_of_peak_that_nemo_reports():
    # NeMo AutoModel: Qwen2.5-7B LoRA, 4096 tokens, one H100: 14,110 tokens/s, 42.8 % of its 989 TFLOP/s.
    flops = flops_per_token(SEVEN_B, replace(LORA, row_tokens=4096), activation_checkpointing=False)
    assert flops * 14110 / devices.find("h100-80g").flops == pytest.approx(0.428, rel=0.03)


def test_computing_activations_again_costs_a_forward_pass_of_the_layers():
    plain = flops_per_token(SEVEN_B, FULL, activation_checkpointing=False)
    again = flops_per_token(SEVEN_B, FULL, activation_checkpointing=True)
    assert again / plain == pytest.approx(4 / 3, rel=0.03)


def test_a_reference_costs_a_forward_pass():
    plain, compared = (
        flops_per_token(SEVEN_B, replace(LORA, objective=kind), activation_checkpointing=False)
        for kind in ("orpo", "dpo")
    )
    assert compared / plain == pytest.approx(1.5, rel=0.03)


def test_the_largest_micro_batch_that_fits_is_chosen():
    roomy = devices.find("h200").memory_bytes
    count, again = choose(SEVEN_B, LORA, device_bytes=roomy, micro_batch_size=None, activation_checkpointing=None)
    assert not again
    assert LORA.global_batch_size % count == 0
    used = memory(SEVEN_B, LORA, micro_batch_size=count, activation_checkpointing=False).total_bytes
    assert used <= roomy * 0.92


def test_activations_are_recomputed_only_when_nothing_fits_without():
    small = devices.find("rtx4090").memory_bytes
    assert choose(SEVEN_B, LORA, device_bytes=small, micro_batch_size=None, activation_checkpointing=None)[1]
    qlora = replace(LORA, method="qlora", row_tokens=1024)
    assert not choose(SEVEN_B, qlora, device_bytes=small, micro_batch_size=None, activation_checkpointing=None)[1]


def test_what_the_user_set_is_kept_even_when_it_does_not_fit():
    small = devices.find("t4").memory_bytes
    chosen = choose(SEVEN_B, FULL, device_bytes=small, micro_batch_size=8, activation_checkpointing=False)
    assert chosen == (8, False)
    found = estimate(
        SEVEN_B, FULL, devices.find("t4"), disk=NO_DISK, micro_batch_size=8, activation_checkpointing=False
    )
    assert found.fits is False


def test_one_process_never_gets_more_rows_than_its_share():
    work = replace(LORA, global_batch_size=8, world_size=8, strategy="ddp", row_tokens=128)
    found = estimate(SEVEN_B, work, devices.find("h200"), disk=NO_DISK)
    assert (found.micro_batch_size, found.accumulation_steps) == (1, 1)


def test_time_is_a_range_that_holds_the_reported_speed():
    work = replace(LORA, row_tokens=4096, global_batch_size=32)
    found = estimate(SEVEN_B, work, devices.find("h100-80g"), disk=NO_DISK, micro_batch_size=2)
    assert found.step_seconds_low < 32 * 4096 / 14110 * 1.01
    assert found.step_seconds_high > 32 * 4096 / 14110
    assert step_seconds(1.0, devices.of_gpu(Gpu(name="X", memory_bytes=1, compute_capability="9.0")), 1) is None


def test_more_devices_take_less_time():
    alone, shared = (
        estimate(SEVEN_B, replace(FULL, strategy="zero3", world_size=count), devices.find("h200"), disk=NO_DISK)
        for count in (8, 16)
    )
    assert alone.step_seconds_low == pytest.approx(2 * shared.step_seconds_low, rel=0.35)


def test_disk_adds_up_what_a_run_writes():
    llama = sizes(option("llama3.1-8b").shape)
    types = ExportConfig(gguf=GgufConfig(types=("f16", "q4_k_m")))
    found = disk(llama, LORA, checkpoints=2, merged=True, export=types)
    # llama.cpp's README: 14.96 and 4.58 GiB.
    assert found.gguf_bytes / 2**30 == pytest.approx(14.96 + 4.58, rel=2e-3)
    assert found.merged_bytes == 2 * llama.parameters
    assert found.checkpoints_bytes == 6 * found.adapter_bytes
    # 6.98 B weights of linear layers in 4.13 bits, 1.05 B of embeddings and head in 16.
    folders = ExportConfig(bnb4=Bnb4Config(write=True), gptq=GptqConfig(write=True))
    packed = disk(llama, LORA, checkpoints=0, merged=False, export=folders)
    assert packed.bnb4_bytes / 1e9 == pytest.approx(5.70, rel=0.01)
    # As many weights in 4 bits, with 16 + 4 bits for 128 of them.
    assert packed.gptq_bytes / 1e9 == pytest.approx(5.73, rel=0.01)
    assert packed.run_bytes == packed.adapter_bytes + packed.bnb4_bytes + packed.gptq_bytes
    assert disk(llama, FULL, checkpoints=0, merged=True, export=ExportConfig()).adapter_bytes == 0


def test_every_gguf_type_of_the_schema_has_a_size():
    assert set(GGUF_BITS) == set(get_args(GgufType))


@pytest.mark.parametrize("device", [None, devices.find("h200")])
def test_an_estimate_round_trips_through_json(device):
    found = estimate(SEVEN_B, LORA, device, disk=NO_DISK)
    data = json.loads(json.dumps(typed.plain(found)))
    assert typed.build(Estimate, data, "estimate") == (found, [])


def test_an_unknown_device_is_refused_with_near_names():
    with pytest.raises(UserError, match=r"hardware\.gpu: there are no facts for a device 'h20O'. Did you mean h200"):
        devices.find("h20O")


@pytest.mark.parametrize(
    ("driver_name", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100-80g"),
        ("NVIDIA H100 PCIe", "h100-pcie-80g"),
        ("NVIDIA A100-SXM4-40GB", "a100-40g"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA RTX A6000", "a6000"),
        ("Tesla T4", "t4"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA A10G", "a10g"),
    ],
)
def test_the_drivers_names_are_known(driver_name, name):
    gpu = Gpu(name=driver_name, memory_bytes=10, compute_capability="8.0")
    assert devices.of_gpu(gpu).flops == devices.find(name).flops


def test_processes_share_a_cpu():
    machine = Machine(cores=8, memory_bytes=1000, gpus=(), python="3.11.0")
    whole, half = devices.of_cpu(machine, 1), devices.of_cpu(machine, 2)
    assert (half.memory_bytes, half.flops) == (500, whole.flops / 2)
