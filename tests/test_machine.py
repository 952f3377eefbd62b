import subprocess
import time
from pathlib import Path

import pytest

from tunerun import machine
from tunerun.machine import cgroup_cores, cgroup_memory_bytes, facts, free_bytes, visible_gpus

LISTING = """\
0, GPU-aaaa1111, NVIDIA H200, 143771, 9.0
1, GPU-bbbb2222, NVIDIA H200, 143771, 9.0
2, GPU-cccc3333, Tesla V100-SXM2-16GB, 16384, 7.0
"""


def test_facts_are_those_of_this_machine_and_come_at_once():
    started = time.monotonic()
    found = facts()
    assert time.monotonic() - started < 2.5
    assert found.cores >= 1
    assert found.memory_bytes > 1 << 28


@pytest.mark.parametrize(
    ("visible", "chosen"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("1", [1]),
        ("2,0", [2, 0]),
        ("0,7,1", [0]),
        ("GPU-cccc", [2]),
        ("GPU-bbbb2222,0", [1, 0]),
    ],
)
def test_only_gpus_that_cuda_shows_are_counted(visible, chosen):
    everything = visible_gpus(LISTING, None)
    assert visible_gpus(LISTING, visible) == tuple(everything[index] for index in chosen)


def test_bf16_comes_with_compute_capability_eight():
    assert [gpu.bf16 for gpu in visible_gpus(LISTING, None)] == [True, True, False]


def test_a_driver_that_does_not_answer_gives_no_gpus(monkeypatch):
    def hang(*arguments, **options):
        raise subprocess.TimeoutExpired("nvidia-smi", options["timeout"])

    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(machine.subprocess, "run", hang)
    assert facts().gpus == ()


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
    ],
)
def test_a_containers_share_of_cpus_is_read(files, cores, tmp_path):
    assert cgroup_cores(write(tmp_path, files)) == cores


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"memory.max": "max"}, None),
        ({"memory.max": "1024"}, 1024),
        ({"memory/memory.limit_in_bytes": "7"}, 7),
    ],
)
def test_a_containers_memory_limit_is_read(files, limit, tmp_path):
    assert cgroup_memory_bytes(write(tmp_path, files)) == limit


def test_free_space_is_that_of_the_nearest_folder_that_exists(tmp_path):
    assert free_bytes(tmp_path / "not" / "there") == pytest.approx(free_bytes(tmp_path), rel=0.05)
