"""The command line and the environment of each step's processes. Pure: nothing is started here."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tunerun.child import STOP_GRACE_SECONDS
from tunerun.paths import ASSET_SCHEME
from tunerun.plan.placement import Placement
from tunerun.plan.steps import (
    AnswerStep,
    DataStep,
    EvalStep,
    ExportStep,
    MergeStep,
    ModelStep,
    PublishStep,
    Step,
    secret_variables,
)

_WORKER = ("-m", "tunerun.worker")
# How the path of a model begins that no hub is asked for; one that exists is absolute by now.
_LOCAL = (".", "/", "~", ASSET_SCHEME)
# Code that comes with a model or a template has no use for them but a bad one.
_HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """This machine among those that a stage runs on."""

    number: int
    """From 0, which is the leader."""
    host: str
    """Name or address of the leader, where the ranks of all nodes meet."""
    port: int
    interface: str | None
    """Network interface towards the others; None when it is unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """How a step is started."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    """Variables set on top of the runner's own environment."""
    without: tuple[str, ...]
    """Variables of the runner's environment that the processes do not get."""
    ranks: int = 0
    """Number of ranks that torchrun starts on this machine; 0 when the stage is one process."""


def command(step: Step, run_dir: Path, python: str = sys.executable, *, node: Node | None = None) -> Launch:
    """Returns how a step is started.

    Args:
        step: What to run.
        run_dir: Holds plan.json, from which the processes read the step.
        python: Interpreter of the stage.
        node: This machine among several; None leaves place holders where there are several.
    """
    placement = _placement(step)
    start = alone(python) if placement is None or placement.world_size == 1 else _together(placement, python, node)
    return Launch(
        argv=(*start, str(run_dir), step.stage),
        env=_environment(step, placement, node),
        without=() if _is_online(step) else _HUB_TOKENS,
        ranks=0 if placement is None or placement.world_size == 1 else placement.processes,
    )


def alone(python: str = sys.executable) -> tuple[str, ...]:
    """Returns how a stage of one process is started: what stands before its run directory and its name."""
    # -P keeps the user's folder off sys.path: a `json.py` there must not replace the library's.
    return (python, "-P", *_WORKER)


def hiding(launch: Launch, step: Step, names: Collection[str]) -> Launch:
    """Keeps variables that hold secrets from a step that has no use for them.

    Args:
        launch: How the step is started.
        step: The step.
        names: Of the variables. A hub's token among them is also for the steps that ask the hub.
    """
    kept = {*secret_variables(step), *_HUB_TOKENS}
    return replace(launch, without=(*launch.without, *(name for name in names if name not in kept)))


def render(step: Step, run_dir: str) -> str:
    """Returns the command line of a step as one would type it."""
    return shlex.join(command(step, Path(run_dir), "python").argv)


def _placement(step: Step) -> Placement | None:
    return (
        None
        if isinstance(step, ModelStep | AnswerStep | DataStep | MergeStep | ExportStep | PublishStep)
        else step.placement
    )


def _is_online(step: Step) -> bool:
    # Models and data sets are downloaded, and the result is uploaded; anything else that asks a hub is a bug, and would
    # hang without a network.
    if isinstance(step, PublishStep):
        return step.publish.repo is not None and not step.publish.dry_run
    if isinstance(step, EvalStep):
        # Tasks bring data of their own.
        return bool(step.eval.lm_eval)
    if isinstance(step, ModelStep):
        return any(path is not None and not path.startswith(_LOCAL) for path in (step.model.path, step.teacher))
    return isinstance(step, AnswerStep) or (isinstance(step, DataStep) and bool(step.hub_paths))


def _together(placement: Placement, python: str, node: Node | None) -> tuple[str, ...]:
    """Returns how a stage of several ranks is started: torchrun starts them and lets them meet, and nothing else.

    The runner restarts, for only it knows which checkpoint is whole; and torchrun would die of a signal that is not
    named, and leave its ranks behind.
    """
    return (
        *(python, "-P", "-m", "torch.distributed.run"),
        *(("--standalone",) if placement.nodes == 1 else _meeting(node)),
        f"--nnodes={placement.nodes}",
        f"--nproc-per-node={placement.processes}",
        "--max-restarts=0",
        "--monitor-interval=0.2",
        "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
        f"--shutdown-timeout={STOP_GRACE_SECONDS:.0f}",
        *_WORKER,
    )


def _meeting(node: Node | None) -> tuple[str, ...]:
    """Returns how the ranks of several nodes meet: the nodes are numbered, so that the first rank is the leader's."""
    number, host, port = ("NODE", "HOST", "PORT") if node is None else (node.number, node.host, node.port)
    return ("--rdzv-backend=static", f"--node-rank={number}", f"--master-addr={host}", f"--master-port={port}")


def _environment(step: Step, placement: Placement | None, node: Node | None) -> dict[str, str]:
    env = {
        "PYTHONUNBUFFERED": "1",
        # The order of sets of strings must not differ between two runs.
        "PYTHONHASHSEED": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "true" if step.stage == "data" else "false",
    }
    if not _is_online(step):
        env["HF_HUB_OFFLINE"] = "1"
    if placement is not None and placement.world_size > 1:
        # torchrun passes no options of the interpreter on to its ranks; as -P.
        env["PYTHONSAFEPATH"] = "1"
        if placement.device == "cpu":
            # DeepSpeed says what it found where it is not told.
            env["DS_ACCELERATOR"] = "cpu"
    if isinstance(step, EvalStep) and step.eval.lm_eval:
        # Its bars would fill the log: tunerun shows its own progress.
        env["TQDM_DISABLE"] = "1"
    if node is not None and node.interface is not None and "GLOO_SOCKET_IFNAME" not in os.environ:
        # gloo takes the address of the host's name, which on many machines is that of the loopback.
        env["GLOO_SOCKET_IFNAME"] = node.interface
    threads = 1 if placement is None else placement.threads
    env.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    if placement is not None and placement.device == "cuda":
        # cuBLAS is deterministic only with a fixed workspace, chosen before the library is loaded.
        env["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        if placement.devices:
            # By bus, as nvidia-smi counts them.
            env |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(placement.devices)}
    return env
