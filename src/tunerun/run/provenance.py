"""Where a result comes from: the user's code, the packages, the machine and the environment. No torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunerun import redact

_MAX_DIFF_BYTES = 256 << 10
_MAX_NEW_FILES = 100
# Neither external diff programs nor filters of the repository may run.
_DIFF_OPTIONS = ("--no-ext-diff", "--no-textconv", "--no-color")
# Configs and programs, wherever they are in the repository; data have their hashes, and runs their records.
_SUFFIXES = ("cfg", "ini", "jinja", "py", "sh", "toml", "yaml", "yml")
_KEPT = (*(f":(top)*.{suffix}" for suffix in _SUFFIXES), ":(exclude,top,glob)**/outputs/**")
_TIMEOUT_SECONDS = 5.0
_PACKAGES = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "deepspeed",
    "gguf",
    "huggingface-hub",
    "hydra-core",
    "jinja2",
    "llama-cpp-python",
    "modelscope",
    "numpy",
    "omegaconf",
    "openpyxl",
    "peft",
    "pyarrow",
    "safetensors",
    "tensorboard",
    "tokenizers",
    "torch",
    "transformers",
    "tunerun",
    "vllm",
    "wandb",
)
# Variables that change what is computed, or where from.
_VARIABLE_PREFIXES = (
    "ACCELERATE_",
    "CUBLAS_",
    "CUDA_",
    "GGML_",
    "GOMP_",
    "HF_",
    "KMP_",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "MKL_",
    "MODELSCOPE_",
    "NCCL_",
    "NVIDIA_",
    "OMP_",
    "OPENBLAS_",
    "PYTHONHASHSEED",
    "PYTHONPATH",
    "PYTORCH_",
    "TORCH_",
    "TRANSFORMERS_",
    "TUNERUN_",
    "WANDB_",
)


def collect(folder: Path, environment: Mapping[str, str], named: Collection[str] = ()) -> dict[str, Any]:
    """Collects what a result depends on besides the config.

    Args:
        folder: The user's project, or a folder in it.
        environment: Variables of this process; of secret ones only the names are kept.
        named: Names of further secret ones.
    """
    secrets = redact.secret_values(environment, named)
    return {
        "git": _git(folder, secrets),
        "python": platform.python_version(),
        "packages": packages(),
        "platform": platform.platform(),
        "hardware": hardware(),
        "environment": variables(environment, named),
    }


def packages() -> dict[str, str]:
    """Returns the installed version of each package that can change a result."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def variables(environment: Mapping[str, str], named: Collection[str] = ()) -> dict[str, str]:
    """Returns the variables that can change a result; secret ones, and those named so, by name only."""
    secrets = redact.secret_values(environment, named)
    found = {}
    for name in sorted(environment):
        if redact.is_secret_name(name) or name in named:
            found[name] = redact.MARK
        elif name.startswith(_VARIABLE_PREFIXES):
            found[name] = redact.text(environment[name], secrets)
    return found


def hardware() -> dict[str, Any]:
    """Returns processor, cores, memory and GPUs."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": _gpus(),
    }


def _git(folder: Path, secrets: tuple[str, ...]) -> dict[str, Any] | None:
    """Returns commit and local changes of the repository around a folder; None where there is none.

    Before the first commit, all that git would take into it is a change.
    """
    git = ("git", "-C", str(folder))
    if _output((*git, "rev-parse", "--git-dir")) is None:
        return None
    commit = _output((*git, "rev-parse", "--verify", "--quiet", "HEAD"))
    before = "HEAD" if commit is not None else (_output((*git, "hash-object", "-t", "tree", os.devnull)) or "").strip()
    status = _output((*git, "status", "--porcelain", "--untracked-files=normal"))
    untracked = [line[3:] for line in (status or "").splitlines() if line.startswith("??")]
    changes = _output((*git, "diff", before, *_DIFF_OPTIONS, "--", *_KEPT)) or ""
    diff = changes + _new_files(git)
    kept = diff.encode()[:_MAX_DIFF_BYTES].decode("utf-8", "ignore")
    return {
        "commit": None if commit is None else commit.strip(),
        "dirty": bool(status),
        "diff": redact.text(kept, secrets),
        "diff_is_cut": len(diff.encode()) > _MAX_DIFF_BYTES,
        "untracked": untracked[:_MAX_NEW_FILES],
    }


def _new_files(git: tuple[str, ...]) -> str:
    """Returns the configs and programs that git does not know, as a diff."""
    listed = _output((*git, "ls-files", "--others", "--exclude-standard", "-z", "--", *_KEPT)) or ""
    names = [name for name in listed.split("\0") if name]
    compare = (*git, "diff", "--no-index", *_DIFF_OPTIONS, "--", os.devnull)
    # A difference, which there is, ends it with 1.
    return "".join(_output((*compare, name), good=(0, 1)) or "" for name in names[:_MAX_NEW_FILES])


def _gpus() -> list[dict[str, str]]:
    fields = ("name", "memory.total", "driver_version", "compute_cap")
    listing = _output(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"])
    return [
        dict(zip(fields, (part.strip() for part in line.split(",")), strict=False))
        for line in (listing or "").splitlines()
    ]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _output(argv: Sequence[str], good: Collection[int] = (0,)) -> str | None:
    """Returns what a program prints, or None when it is not installed, fails or takes too long."""
    if shutil.which(argv[0]) is None:
        return None
    try:
        done = subprocess.run(argv, capture_output=True, timeout=_TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode in good else None
