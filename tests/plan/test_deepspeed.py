import pytest

from tunerun.plan import deepspeed
from tunerun.plan.deepspeed import BUCKET_NUMBERS, WHOLE_NUMBERS, deepspeed_config
from tunerun.plan.placement import Placement

ZERO2 = Placement(strategy="zero2", processes=2)


def problems(own, placement=ZERO2):
    return [str(problem) for problem in deepspeed.problems(own, placement, max_grad_norm=1.0)]


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp2"])
def test_other_strategies_have_none(strategy):
    assert deepspeed_config(Placement(strategy=strategy, processes=2), max_grad_norm=1.0) == {}


def test_what_deepspeed_would_do_of_itself_is_turned_off():
    config = deepspeed_config(ZERO2, max_grad_norm=None)
    assert config["gradient_clipping"] == 0.0
    assert config["managed_gradient_accumulation"] is False
    assert "bf16" not in config
    assert "offload_optimizer" not in config["zero_optimization"]


def test_precision_and_offload_are_those_of_the_placement():
    placement = Placement(strategy="zero3", processes=8, precision="bf16", device="cuda", offload=True)
    config = deepspeed_config(placement, max_grad_norm=0.5)
    assert config["bf16"] == {"enabled": True, "check_grad_overflow": True}
    assert config["gradient_clipping"] == 0.5
    assert config["zero_optimization"] == {
        "stage": 3,
        "reduce_bucket_size": BUCKET_NUMBERS,
        "stage3_param_persistence_threshold": WHOLE_NUMBERS,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "offload_param": {"device": "cpu", "pin_memory": True},
    }


def test_a_users_file_goes_before_and_what_it_leaves_to_a_trainer_is_left_out():
    own = {
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000, "allgather_bucket_size": "auto"},
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": 4,
        "gradient_clipping": "auto",
        "wall_clock_breakdown": True,
    }
    assert problems(own) == []
    config = deepspeed_config(ZERO2, max_grad_norm=1.0, own=own)
    assert config["zero_optimization"] == {"stage": 2, "overlap_comm": False, "reduce_bucket_size": 1000}
    assert config["train_micro_batch_size_per_gpu"] == 1
    assert config["gradient_clipping"] == 1.0
    assert config["wall_clock_breakdown"] is True


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage is 3, and the run's own keys make it 2"),
        ({"gradient_clipping": 0.3}, "gradient_clipping is 0.3, and the run's own keys make it 1.0"),
        ({"bf16": {"enabled": True}}, "bf16.enabled is True, and the run's own keys make it False"),
        ({"optimizer": {"type": "AdamW"}}, "`optimizer` is not DeepSpeed's to do here. Remove it; see train.optimizer"),
        ({"fp16": {"enabled": True}}, "`fp16` is not DeepSpeed's to do here"),
        ({"fp16": {"enabled": True, "loss_scale": 0}}, "`fp16` is not DeepSpeed's to do here"),
        ({"zero_optimization": True}, "zero_optimization is True, and has to be a mapping"),
        ({"bf16": True}, "bf16 is True, and has to be a mapping"),
        ({"fp16": False}, "fp16 is False, and has to be a mapping"),
        (
            {"zero_optimization": {"offload_optimizer": "cpu"}},
            "zero_optimization.offload_optimizer is 'cpu', and has to be a mapping",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            "zero_optimization.offload_optimizer.device is cpu, and the run's own keys make it none",
        ),
        (
            {"zero_optimization": {"offload_param": {"device": "nvme"}}},
            "zero_optimization.offload_param.device is nvme, and the run's own keys make it none",
        ),
    ],
)
def test_a_file_that_says_otherwise_than_the_run_is_refused(own, told):
    (found,) = problems(own)
    assert told in found


@pytest.mark.parametrize(
    ("own", "found"),
    [
        ({}, (BUCKET_NUMBERS, WHOLE_NUMBERS)),
        ({"zero_optimization": {"reduce_bucket_size": 1e6}}, (1_000_000, WHOLE_NUMBERS)),
        ({"zero_optimization": {"stage3_param_persistence_threshold": 0}}, (BUCKET_NUMBERS, 0)),
        ({"zero_optimization": {"stage3_param_persistence_threshold": "auto"}}, (BUCKET_NUMBERS, WHOLE_NUMBERS)),
        ({"zero_optimization": True}, (BUCKET_NUMBERS, WHOLE_NUMBERS)),
    ],
)
def test_the_estimate_counts_with_the_sizes_of_a_users_file(own, found):
    placement = Placement(strategy="zero3", processes=2)
    assert deepspeed.sizes(deepspeed_config(placement, max_grad_norm=1.0, own=own)) == found
    assert deepspeed.sizes({}) == (BUCKET_NUMBERS, WHOLE_NUMBERS)


@pytest.mark.parametrize("enabled", ["auto", False])
def test_fp16_that_is_off_or_left_open_is_left_out(enabled):
    own = {"fp16": {"enabled": enabled, "loss_scale": 0, "loss_scale_window": 1000}}
    assert problems(own) == []
    assert deepspeed_config(ZERO2, max_grad_norm=1.0, own=own) == deepspeed_config(ZERO2, max_grad_norm=1.0)


def test_an_offload_that_the_runs_keys_ask_for_too_is_let_through():
    placement = Placement(strategy="zero3", processes=2, offload=True)
    own = {
        "zero_optimization": {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "auto"}},
        "fp16": None,
    }
    assert problems(own, placement) == []
    (told,) = problems({"zero_optimization": {"offload_param": {"device": "none"}}}, placement)
    assert "offload_param.device is none, and the run's own keys make it cpu" in told


def test_a_file_without_deepspeed_to_read_it_is_refused():
    assert "fsdp2 does not run under DeepSpeed" in problems({}, Placement(strategy="fsdp2", processes=2))[0]
