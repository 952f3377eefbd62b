"""What torch holds for weights, gradients and optimiser on one rank and on two, against what the plan says."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.plan.test_memory import LORA, qwen2, shape_of
from tunerun.plan import memory
from tunerun.plan.memory import Work

CONFIG = qwen2(4, 256, 6144)
slow = pytest.mark.slow


def held_bytes(work: Work) -> int:
    """Returns the most that a rank holds between two micro-batches of a second step."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    script = str(Path(__file__).with_name("hold_and_measure.py"))
    argv = [sys.executable, script, json.dumps(CONFIG), work.strategy, work.method, work.precision]
    common = {
        "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "WORLD_SIZE": str(work.world_size), "LOCAL_SIZE": str(work.world_size), "DS_ACCELERATOR": "cpu",
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            argv,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(work.world_size)
    ]
    said = [process.communicate(timeout=280) for process in ranks]
    assert all(process.returncode == 0 for process in ranks), [errors[-2000:] for _, errors in said]
    return max(json.loads(out.splitlines()[-1])["held_bytes"] for out, _ in said)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    ("strategy", "world", "precision"),
    [
        ("single", 1, "fp32"),
        *(pytest.param(strategy, 1, "fp32", marks=slow) for strategy in ("zero1", "zero2", "zero3", "fsdp2")),
        pytest.param("ddp", 2, "fp32", marks=slow),
        pytest.param("zero1", 2, "fp32", marks=slow),
        pytest.param("zero1", 2, "bf16", marks=slow),
        pytest.param("zero2", 2, "fp32", marks=slow),
        pytest.param("zero2", 2, "bf16", marks=slow),
        pytest.param("zero3", 2, "fp32", marks=slow),
        pytest.param("zero3", 2, "bf16", marks=slow),
        pytest.param("fsdp2", 2, "fp32", marks=slow),
        pytest.param("fsdp2", 2, "bf16", marks=slow),
    ],
)
def test_a_rank_holds_what_is_planned(strategy, world, precision, method):
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed", reason="ZeRO needs deepspeed")
    work = replace(
        LORA, method=method, strategy=strategy, world_size=world, precision=precision, device="cpu", row_tokens=32
    )
    size = shape_of(CONFIG)
    found = memory.memory(size, work, micro_batch_size=1, activation_checkpointing=False)
    states = found.weights_bytes + found.gradients_bytes + found.optimiser_bytes
    if strategy in ("zero3", "fsdp2"):
        # Between two micro-batches no layer is brought together.
        states -= int(memory._gathered_bytes(size, work))
    held = held_bytes(work)
    assert states == pytest.approx(held, rel=0.15)
