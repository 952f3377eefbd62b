from dataclasses import replace

import pytest

from tunerun.config.schema import ClusterConfig, HardwareConfig, RunConfig, TrainConfig
from tunerun.plan.accelerate import accelerate_config, notes, with_accelerate
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
        "hardware.accelerate: num_machines is 1, and cluster.nodes is 2. Set cluster.nodes=1, or change the file.",
    ]


def test_what_a_cluster_says_as_the_file_does_is_let_through():
    typed = replace(RunConfig(), cluster=ClusterConfig(kind="multi_node", nodes=2))
    content = {"distributed_type": "MULTI_GPU", "num_machines": 2, "num_processes": 4}
    meets = {"main_process_ip": "10.0.0.4", "main_process_port": 29400}
    config, problems = with_accelerate(typed, {**content, **meets})
    assert problems == []
    assert config.cluster == replace(typed.cluster, rendezvous="10.0.0.4:29400")
    named = replace(typed, cluster=replace(typed.cluster, rendezvous="gpu1:29400"))
    assert with_accelerate(named, content)[0].cluster == named.cluster
    (problem,) = with_accelerate(named, {**content, **meets})[1]
    assert str(problem) == "hardware.accelerate: cluster.rendezvous is set too. Say it in one of the two."


FSDP = {"distributed_type": "FSDP", "num_processes": 2, "fsdp_config": {"fsdp_version": 2}}


def test_the_gpus_and_the_checkpointing_of_a_file_are_taken_over():
    content = {**FSDP, "gpu_ids": "2, 3", "fsdp_config": {"fsdp_version": 2, "fsdp_activation_checkpointing": True}}
    config, problems = with_accelerate(RunConfig(), content)
    assert problems == []
    assert (config.hardware.devices, config.train.activation_checkpointing) == (("2", "3"), True)
    assert with_accelerate(RunConfig(), {**FSDP, "gpu_ids": "all"})[0].hardware.devices == ()
    typed = RunConfig(hardware=HardwareConfig(devices=("0", "1")), train=TrainConfig(activation_checkpointing=False))
    assert [str(problem) for problem in with_accelerate(typed, content)[1]] == [
        "hardware.accelerate: hardware.devices is set too. Say it in one of the two.",
        "hardware.accelerate: train.activation_checkpointing is set too. Say it in one of the two.",
    ]


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"zero_stage": 2, "gradient_clipping": 0.3}, "gradient_clipping is 0.3, and train.max_grad_norm makes it 1.0"),
        ({"zero_stage": 2, "offload_optimizer_device": "nvme"}, "offload_optimizer_device is nvme"),
        ({"zero_stage": 3, "offload_param_device": "cpu"}, "only one of optimiser state and parameters is offloaded"),
        (
            {"zero_stage": 3, "offload_optimizer_device": "cpu", "offload_param_device": "none"},
            "only one of optimiser state and parameters is offloaded",
        ),
        ({"zero_stage": 1, "offload_optimizer_device": "cpu"}, "zero_stage 1 offloads nothing"),
    ],
)
def test_what_a_file_says_of_deepspeed_otherwise_than_it_is_done_is_refused(section, told):
    content = {"distributed_type": "DEEPSPEED", "num_processes": 2, "deepspeed_config": section}
    (problem,) = with_accelerate(RunConfig(), content)[1]
    assert told in str(problem)


@pytest.mark.parametrize("clipping", [1.0, 1, "1.0", "none", "auto", None])
def test_clipping_as_the_run_does_it_or_left_open_is_let_through(clipping):
    section = {"zero_stage": 2, "gradient_clipping": clipping}
    content = {"distributed_type": "DEEPSPEED", "num_processes": 2, "deepspeed_config": section}
    assert with_accelerate(RunConfig(), content)[1] == []


def test_offload_in_a_section_for_another_kind_offloads_nothing():
    content = {"distributed_type": "MULTI_GPU", "num_processes": 2, "fsdp_config": {"fsdp_offload_params": True},
               "deepspeed_config": {"offload_optimizer_device": "cpu"}}  # fmt: skip
    config, problems = with_accelerate(RunConfig(), content)
    assert problems == []
    assert config.hardware.offload is False


def test_what_is_not_read_is_told():
    content = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "FSDP",
        "num_processes": 2,
        "machine_rank": 0,
        "main_process_port": 29500,
        "downcast_bf16": "no",
        "dynamo_config": {"dynamo_backend": "INDUCTOR"},
        "megatron_lm_config": {},
        "fsdp_config": {"fsdp_version": 2, "fsdp_state_dict_type": "SHARDED_STATE_DICT", "fsdp_offload_params": False},
    }
    config, _ = with_accelerate(RunConfig(), content)
    unread = "main_process_port, dynamo_config, fsdp_config.fsdp_state_dict_type"
    assert notes(content, config) == [f"of the accelerate config these are not read: {unread}"]
    together = replace(config, cluster=ClusterConfig(kind="multi_node", nodes=2))
    assert "main_process_port" not in notes(content, together)[0]
    assert notes(FSDP, config) == []
