from dataclasses import replace

import pytest

from tunerun.config.schema import ClusterConfig, HardwareConfig, RunConfig
from tunerun.plan.accelerate import accelerate_config, with_accelerate
from tunerun.plan.placement import Placement


@pytest.mark.parametrize(
    "placement",
    [
        Placement(strategy="ddp", processes=2),
        Placement(strategy="ddp", processes=8, nodes=2, device="cuda", precision="bf16"),
        Placement(strategy="zero1", processes=2),
        Placement(strategy="zero2", processes=4, device="cuda", offload=True),
        Placement(strategy="zero3", processes=4, device="cuda", precision="bf16", offload=True),
        Placement(strategy="fsdp2", processes=4, nodes=2, device="cuda", offload=True),
    ],
)
def test_what_is_written_for_a_placement_is_read_back_as_the_same(placement):
    config, problems = with_accelerate(RunConfig(), accelerate_config(placement))
    assert problems == []
    hardware = config.hardware
    assert (hardware.strategy, hardware.processes, config.cluster.nodes) == (
        placement.strategy,
        placement.processes,
        placement.nodes,
    )
    assert (hardware.precision, hardware.offload) == (placement.precision, placement.offload)
    assert hardware.device == ("cpu" if placement.device == "cpu" else "auto")


def test_accelerate_itself_reads_what_is_written(tmp_path):
    import yaml
    from accelerate.commands.config.config_args import load_config_from_file

    path = tmp_path / "accelerate.yaml"
    path.write_text(yaml.safe_dump(accelerate_config(Placement(strategy="zero3", processes=4, device="cuda"))))
    found = load_config_from_file(str(path))
    assert (found.num_processes, found.distributed_type.value) == (4, "DEEPSPEED")
    assert found.deepspeed_config["zero_stage"] == 3


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"distributed_type": "MEGATRON_LM"}, "distributed_type MEGATRON_LM is not known"),
        ({"distributed_type": "FSDP", "fsdp_config": {}}, "it asks for the first FSDP. Set fsdp_version: 2."),
        ({"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 0}}, "zero_stage 0 is not one"),
        ({"mixed_precision": "fp16"}, "mixed_precision fp16 is not trained in"),
        ({"num_processes": 3, "num_machines": 2}, "num_processes 3 cannot be divided among 2 machines"),
        ({"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": [1]}}, "zero_stage [1] is not one"),
        ({"num_processes": None}, "num_processes is None. Set it to a number from 1."),
        ({"num_machines": "two"}, "num_machines is 'two'. Set it to a number from 1."),
    ],
)
def test_what_cannot_be_done_is_named(content, told):
    config, problems = with_accelerate(RunConfig(), content)
    assert config == RunConfig()
    assert [told in str(problem) for problem in problems] == [True]


def test_words_that_yaml_reads_as_false_without_quotes_are_words():
    config, problems = with_accelerate(RunConfig(), {"distributed_type": False, "mixed_precision": False})
    assert problems == []
    assert (config.hardware.strategy, config.hardware.precision) == ("single", "fp32")


def test_a_deepspeed_config_goes_before_what_is_said_beside_it():
    content = {
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {"deepspeed_config_file": "/zero.json", "zero_stage": 2},
    }
    own = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}, "bf16": {"enabled": True}}
    config, problems = with_accelerate(RunConfig(), content, own)
    assert problems == []
    hardware = config.hardware
    assert (hardware.strategy, hardware.offload, hardware.precision) == ("zero3", True, "bf16")
    assert hardware.deepspeed == "/zero.json"


def test_what_is_also_typed_is_refused():
    typed = replace(
        RunConfig(),
        hardware=HardwareConfig(strategy="zero2", processes=2, precision="bf16", offload=True),
        cluster=ClusterConfig(kind="slurm", nodes=2),
    )
    told = [
        str(problem) for problem in with_accelerate(typed, {"distributed_type": "MULTI_GPU", "num_processes": 2})[1]
    ]
    assert told == [
        "hardware.accelerate: hardware.strategy is set too. Say it in one of the two.",
        "hardware.accelerate: hardware.processes is set too. Say it in one of the two.",
        "hardware.accelerate: hardware.precision is set too. Say it in one of the two.",
        "hardware.accelerate: hardware.offload is set too. Say it in one of the two.",
        "hardware.accelerate: cluster.nodes is set too. Say it in one of the two.",
    ]
