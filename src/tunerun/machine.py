"""What this machine has: cores, memory, disk and GPUs, found without importing torch."""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_NVIDIA_SMI = "nvidia-smi"
_NVIDIA_SMI_SECONDS = 2.0
_MIB = 1 << 20
# Intel and AMD, as /proc/cpuinfo names them; torch has no other fast bf16 products on x86.
_BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One visible GPU."""

    name: str
    """As the driver says it, such as `NVIDIA H200`."""
    memory_bytes: int
    """All memory of the device, used or free."""
    compute_capability: str
    """CUDA's major and minor version of the hardware, such as `9.0`."""

    @property
    def bf16(self) -> bool:
        """Whether the hardware multiplies bf16 matrices (compute capability 8.0 and later)."""
        return float(self.compute_capability) >= 8.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """The facts a plan depends on."""

    cores: int
    """CPUs this process may use, after affinity and container limits."""
    memory_bytes: int
    """Memory this process may use, after container limits."""
    gpus: tuple[Gpu, ...]
    """GPUs visible to CUDA, in CUDA's order by bus."""
    python: str
    """Version of the interpreter."""
    cpu_bf16: bool = False
    """Whether the CPU multiplies bf16 matrices in hardware, as far as Linux says so."""


def facts(devices: Sequence[str] = ()) -> Machine:
    """Returns what this machine has; takes milliseconds, or up to two seconds when a GPU driver does not answer.

    Args:
        devices: GPUs to look at, by index or UUID; those that CUDA_VISIBLE_DEVICES names when empty.
    """
    visible = ",".join(devices) or os.environ.get("CUDA_VISIBLE_DEVICES")
    flags = (_read(Path("/proc/cpuinfo")) or "").partition("\nflags")[2].partition("\n")[0].split()
    return Machine(
        cores=_cores(),
        memory_bytes=_memory_bytes(),
        gpus=_gpus(visible),
        python=platform.python_version(),
        cpu_bf16=not _BF16_FLAGS.isdisjoint(flags),
    )


def free_bytes(path: Path) -> int:
    """Returns the free space on the disk of a path, which need not exist yet."""
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def busy_cores(seconds: float = 0.05) -> float:
    """Measures for a moment how many cores are at work, whoever uses them; 0 where /proc/stat is not there."""
    before = _cpu_ticks()
    time.sleep(seconds)
    after = _cpu_ticks()
    if before is None or after is None or after[1] == before[1]:
        return 0.0
    idle, total = after[0] - before[0], after[1] - before[1]
    return (1 - idle / total) * (os.cpu_count() or 1)


def _cpu_ticks() -> tuple[int, int] | None:
    """Returns the idle ticks and all ticks of all CPUs since the start: `cpu user nice system idle iowait ...`."""
    text = _read(Path("/proc/stat"))
    if text is None:
        return None
    ticks = [int(field) for field in text.splitlines()[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def _cores() -> int:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_cores(_CGROUP)
    return available if quota is None else max(1, min(available, quota))


def cgroup_cores(root: Path) -> int | None:
    """Returns the whole CPUs that a container's quota allows, rounded up, or None without a quota.

    Args:
        root: Where the control groups are mounted: version 2 (`cpu.max`) or 1 (`cpu/cpu.cfs_quota_us`).
    """
    fields = (_read(root / "cpu.max") or "").split()
    if not fields:
        fields = [_read(root / "cpu/cpu.cfs_quota_us") or "-1", _read(root / "cpu/cpu.cfs_period_us") or "100000"]
    quota, period = fields
    return None if quota in ("max", "-1") else math.ceil(int(quota) / int(period))


def cgroup_memory_bytes(root: Path) -> int | None:
    """Returns the memory limit of a container, or None without one."""
    limit = _read(root / "memory.max") or _read(root / "memory/memory.limit_in_bytes")
    return int(limit) if limit and limit != "max" else None


def _memory_bytes() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = cgroup_memory_bytes(_CGROUP)
    return total if limit is None else min(total, limit)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _gpus(visible: str | None) -> tuple[Gpu, ...]:
    if shutil.which(_NVIDIA_SMI) is None:
        return ()
    query = [_NVIDIA_SMI, "--query-gpu=index,uuid,name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_NVIDIA_SMI_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        # A driver that does not answer gives no GPUs: CUDA could not use them either.
        return ()
    return visible_gpus(done.stdout, visible)


def visible_gpus(listing: str, visible: str | None) -> tuple[Gpu, ...]:
    """Reads nvidia-smi's listing and keeps what CUDA would see.

    Args:
        listing: Lines of `index, uuid, name, memory in MiB, compute capability`.
        visible: CUDA_VISIBLE_DEVICES: indexes or prefixes of UUIDs; as in CUDA, what follows an unknown entry is
            ignored. None keeps all.
    """
    rows = [[field.strip() for field in line.split(",")] for line in listing.splitlines() if line.strip()]
    gpus = [(row[0], row[1], _gpu(row)) for row in rows]
    if visible is None:
        return tuple(gpu for _, _, gpu in gpus)
    chosen: list[Gpu] = []
    for entry in visible.split(","):
        matches = [gpu for index, uuid, gpu in gpus if entry.strip() and _names(entry.strip(), index, uuid)]
        if not matches:
            break
        chosen.append(matches[0])
    return tuple(chosen)


def _names(entry: str, index: str, uuid: str) -> bool:
    return entry == index or (entry.startswith("GPU-") and uuid.startswith(entry))


def _gpu(row: list[str]) -> Gpu:
    return Gpu(name=row[2], memory_bytes=int(row[3]) * _MIB, compute_capability=row[4])
