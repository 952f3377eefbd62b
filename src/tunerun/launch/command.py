"""The command line and the environment of each step's processes. Pure: nothing is started here."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tunerun.plan.steps import DataStep, ExportStep, MergeStep, ModelStep, Placement, Step

# Where a multi-node command meets: the launcher of the cluster fills in the first host and this node's number.
RENDEZVOUS = "HOST:29400"

_ZERO_STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
# Code that comes with a model or a template has no use for them but a bad one.
_HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """How a step is started."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    """Variables set on top of the runner's own environment."""
    without: tuple[str, ...]
    """Variables of the runner's environment that the processes do not get."""


def command(step: Step, run_dir: Path, python: str = sys.executable) -> Launch:
    """Returns how a step is started.

    Args:
        step: What to run.
        run_dir: Holds plan.json, from which the processes read the step.
        python: Interpreter of the stage.
    """
    placement = _placement(step)
    worker = ("-m", "tunerun.worker", str(run_dir), step.stage)
    return Launch(
        argv=(*_launcher(placement, python), *worker),
        env=_environment(step, placement),
        without=() if _is_online(step) else _HUB_TOKENS,
    )


def render(step: Step, run_dir: str) -> str:
    """Returns the command line of a step as one would type it."""
    return shlex.join(command(step, Path(run_dir), "python").argv)


def _placement(step: Step) -> Placement | None:
    return None if isinstance(step, ModelStep | DataStep | MergeStep | ExportStep) else step.placement


def _is_online(step: Step) -> bool:
    # Models and data sets are downloaded; anything later that asks a hub is a bug, and would hang without a network.
    return isinstance(step, ModelStep) or (isinstance(step, DataStep) and bool(step.hub_paths))


def _launcher(placement: Placement | None, python: str) -> tuple[str, ...]:
    # -P keeps the user's folder off sys.path: a `json.py` there must not replace the library's.
    interpreter = (python, "-P")
    if placement is None or placement.world_size == 1:
        return interpreter
    if placement.strategy in _ZERO_STAGES:
        return (*interpreter, *_accelerate(placement))
    return (*interpreter, *_torchrun(placement))


def _torchrun(placement: Placement) -> tuple[str, ...]:
    # The runner restarts, not torchrun: only it knows which checkpoint is whole.
    counts = (f"--nnodes={placement.nodes}", f"--nproc-per-node={placement.processes}", "--max-restarts=0")
    if placement.nodes == 1:
        return ("-m", "torch.distributed.run", "--standalone", *counts)
    return ("-m", "torch.distributed.run", "--rdzv-backend=c10d", f"--rdzv-endpoint={RENDEZVOUS}", *counts)


def _accelerate(placement: Placement) -> tuple[str, ...]:
    offload = ("--offload_optimizer_device=cpu",) if placement.offload else ()
    parameters = ("--offload_param_device=cpu",) if placement.offload and placement.strategy == "zero3" else ()
    host, _, port = RENDEZVOUS.partition(":")
    nodes = (f"--main_process_ip={host}", f"--main_process_port={port}") if placement.nodes > 1 else ()
    return (
        "-m",
        "accelerate.commands.launch",
        "--use_deepspeed",
        f"--zero_stage={_ZERO_STAGES[placement.strategy]}",
        f"--num_machines={placement.nodes}",
        f"--num_processes={placement.world_size}",
        f"--mixed_precision={'bf16' if placement.precision == 'bf16' else 'no'}",
        "--max_restarts=0",
        *nodes,
        *offload,
        *parameters,
    )


def _environment(step: Step, placement: Placement | None) -> dict[str, str]:
    env = {
        "PYTHONUNBUFFERED": "1",
        # The order of sets of strings must not differ between two runs.
        "PYTHONHASHSEED": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "true" if step.stage == "data" else "false",
    }
    if not _is_online(step):
        env["HF_HUB_OFFLINE"] = "1"
    threads = 1 if placement is None else placement.threads
    env.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
    if placement is not None and placement.device == "cuda":
        # cuBLAS is deterministic only with a fixed workspace, chosen before the library is loaded.
        env["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    return env
