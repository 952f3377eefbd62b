"""The plan as text."""

from __future__ import annotations

import pytest

from tests.plan.test_build import CPU, SHAPE, TWO_GPUS, planned
from tunerun.columns import width
from tunerun.plan.dataset import DataSize
from tunerun.plan.render import duration, gigabytes, quantity, render


def shown(found, obstacles=()) -> str:
    commands = {
        step.stage: ["/usr/bin/python3", "-m", "tunerun.worker", found.run_dir, step.stage] for step in found.steps
    }
    return render(found, commands=commands, files={}, obstacles=obstacles)


@pytest.mark.parametrize("machine", [CPU, TWO_GPUS])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method__kind": "full"},
        {"stages": ["export"]},
        {"model": {"path": "org/model"}},
        {"hardware__strategy": "zero3", "hardware__processes": 2, "hardware__offload": True},
        {"run_dir": "/home/somebody/work/tunerun/outputs/qwen2.5-lora/20260101-120000-abcd"},
    ],
)
def test_every_plan_fits_a_hundred_columns(machine, changes):
    text = shown(
        planned(machine, DataSize(rows=123_456, tokens=98_765_432, longest=600), **changes),
        ["data.path: is gone. " * 8],
    )
    assert max(map(width, text.splitlines())) <= 100


def test_chinese_text_fits_a_hundred_columns():
    obstacle = f"data.path: there is no file or folder {'数据 ' * 40}."
    text = shown(planned(run_dir="/home/用户/微调 实验/outputs/你好/20260101-120000-abcd"), [obstacle])
    assert max(map(width, text.splitlines())) <= 100


def test_a_plan_names_what_a_user_asks_for():
    text = shown(planned(size=DataSize(rows=1600, tokens=160_000, longest=600)), ["model.path: is gone."])
    for part in (
        "model -> data -> train -> eval -> merge -> export -> verify",
        "sft, lora, fp32",
        "100 about",
        "trainable",
        "weights",
        "optimiser",
        "STAGE: model, data, train",
        "no rows are held out",
        "cannot run here",
    ):
        assert part.replace("100 about", "100, about") in text


def test_a_plan_says_what_is_published_where_and_how_large_it_is():
    publish = {"repo": "someone/small", "revision": "v2", "ollama": "small"}
    text = " ".join(shown(planned(stages=["data", "train", "merge", "export", "publish"], publish=publish)).split())
    assert "publish hf:someone/small@v2 (private if it is made): model card, merged about" in text
    assert "gguf about" in text
    assert "Ollama on this machine, as small" in text
    dry = " ".join(
        shown(planned(stages=["publish"], publish={"repo": "someone/small", "private": False, "dry_run": True})).split()
    )
    assert "(public if it is made): model card, what the run directory has; dry run" in dry


def test_a_plan_says_what_verify_compares_and_how_long_that_takes():
    text = " ".join(shown(planned(export={"gguf": {"types": ["f16", "q4_k_m"]}})).split())
    # merge_logits 4, what the files were made from, and two files.
    assert "verify quick: at most 20 texts of 256 tokens 7 times through a model in float32; served by lla" in text
    # Two layers of 36,864 weights and the head, and attention to 256 tokens in layers of width 64.
    operations = 2 * (2 * 36_864 + 64_000) + 2 * 256 * 64 * 2
    assert f"about {quantity(operations * (20 * 256 * 7 + 3 * 264))} operations: " in text
    assert "gguf f16 0.3 MB, gguf q4_k_m 0.1 MB" in text
    whole = " ".join(shown(planned(verify__level="full", export={"gguf": {"types": ["f16"]}})).split())
    assert "verify full: at most 48 texts of 256 tokens 6 times through a model" in whole
    assert "20 answers of 32 tokens (f16); served by llamacpp, transformers" in whole
    unknown = " ".join(shown(planned(model={"path": "org/model"})).split())
    assert "6 times through a model in float32; served by llamacpp commands" in unknown


def test_an_unknown_shape_shows_no_estimate():
    assert "parameters" not in shown(planned(model={"path": "org/model"}))
    assert "parameters" in shown(planned(model={"path": "org/model", "shape": SHAPE}))


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (1000, "1 k"), (1_540_000_000, "1.54 B"), (2e12, "2 T")]
)
def test_quantities_have_three_digits(value, text):
    assert quantity(value) == text


@pytest.mark.parametrize(("value", "text"), [(1e6, "1.0 MB"), (9.99e7, "99.9 MB"), (1e8, "0.1 GB"), (3.14e9, "3.1 GB")])
def test_sizes_change_their_unit_at_a_tenth_of_a_gigabyte(value, text):
    assert gigabytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(5, "5 s"), (89, "89 s"), (120, "2 min"), (7500, "2 h 5 min"), (3 * 86400, "3.0 days")]
)
def test_durations_have_two_units_at_most(value, text):
    assert duration(value) == text


def test_a_plan_shows_what_several_processes_are_told():
    text = " ".join(shown(planned(hardware__strategy="zero2", hardware__processes=2)).split())
    assert "launch/accelerate.yaml compute_environment 'LOCAL_MACHINE', distributed_type 'DEEPSPEED'" in text
    assert "launch/deepspeed.json train_micro_batch_size_per_gpu 1" in text
    assert "zero_optimization.stage 2" in text
    assert "launch/" not in shown(planned())
