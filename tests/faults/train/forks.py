"""Train stages in forked processes, so that many can be started and hurt without importing torch each time.

A program of its own (`python -m tests.faults.train.forks KIND FOLDER COUNT`), because only a process that has computed
nothing yet may fork safely. Prints what happened as JSON.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tests.train.memory import memory_for
from tests.train.runs import FULL, LORA, losses, make_run, train_step
from tunerun import artifacts, child, worker
from tunerun.errors import ExitCode
from tunerun.models import adapters, load  # noqa: F401 (what a stage would import)
from tunerun.plan import steps
from tunerun.plan.steps import TrainStep
from tunerun.train import checkpoint, stage  # noqa: F401

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_PACKED, _SHORT = "lora packed", "lora short of memory"


def cases(steps_count: int) -> dict[str, TrainStep]:
    """Returns what is trained, by name; a checkpoint follows every other step."""
    often = {"max_steps": steps_count, "checkpoint_steps": 2}
    return {
        "lora": train_step(LORA, micro_batch_size=2, **often),
        "full": train_step(FULL, **often),
        # Memory is there for 4 rows at a time.
        _SHORT: train_step(LORA, micro_batch_size=8, global_batch_size=16, **often),
        _PACKED: train_step(LORA, micro_batch_size=1, global_batch_size=2, neftune_alpha=5.0, **often),
    }


def prepare(out: Path, name: str, step: TrainStep) -> Path:
    """Makes a run directory with its plan; the base model is made once."""
    base = out.parent / "base"
    if out.is_dir():
        shutil.rmtree(out)
    if base.is_dir():
        shutil.copytree(base, out / "base")
    make_run(out, packed=name == _PACKED)
    if not base.is_dir():
        shutil.copytree(out / "base", base)
    artifacts.write_json(out / artifacts.PLAN, {"steps": [steps.to_json(step)]})
    return out


def start(out: Path) -> int:
    """Starts the train stage of a run directory in a child; returns its process id."""
    # Held back until the child can take them, as they reach it before its first line.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return pid
    code = 99
    try:
        child.stop_on_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        with (out / "log").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        code = worker.main([str(out), "train"])
        sys.stdout.flush()
    except child.Stopped:
        code = ExitCode.PREEMPTED
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    """Returns the exit code of a child, negative when a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def result(out: Path) -> Any:
    """Returns what a finished run made: the hash of its weights, and the loss of every step."""
    status = artifacts.read_json(out / artifacts.STATUS / "train.json")
    return [status["exit_code"], status["artifacts"][0]["sha256"], losses(out)]


def _is_killed(pid: int, moment: float) -> bool:
    """Kills a child at a moment, in seconds from now; says no when it ends before."""
    until = time.monotonic() + moment
    while time.monotonic() < until:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    return wait(pid) == -signal.SIGKILL


def kills(folder: Path, count: int) -> dict[str, Any]:
    """Kills runs at random moments, and again while they go on, until each is done."""
    generator, told = random.Random(count), {"kills": 0, "finished": 0, "halved": 0, "different": []}
    for name, step in cases(16).items():
        straight = prepare(folder / "straight", name, step)
        began = time.monotonic()
        wait(start(straight))
        seconds, wanted = time.monotonic() - began, result(straight)
        share, killed = count // 4 + (name == "lora") * (count % 4), 0
        while killed < share:
            out = prepare(folder / "killed", name, step)
            while killed < share and _is_killed(start(out), generator.uniform(0, seconds)):
                killed += 1
            if killed == share:
                wait(start(out))
            told["finished"] += 1
            told["halved"] += (out / artifacts.FITTING).is_file()
            if result(out) != wanted:
                told["different"].append(name)
        told["kills"] += killed
        # It takes long, and may be stopped.
        print(json.dumps(told), flush=True)
    return told


def signals(folder: Path, count: int) -> dict[str, Any]:
    """Stops runs by signals at random moments, each time a run is started anew, and lets them go on to the end."""
    generator, told = random.Random(count), {"stopped": 0, "wrong": [], "different": 0}
    step = cases(16)["lora"]
    straight = prepare(folder / "straight", "lora", step)
    began = time.monotonic()
    wait(start(straight))
    seconds, wanted = time.monotonic() - began, result(straight)
    for index in range(count):
        out = prepare(folder / "stopped", "lora", step)
        pid = start(out)
        time.sleep(generator.uniform(0, 0.8 * seconds))
        number = SIGNALS[index % len(SIGNALS)]
        os.kill(pid, number)
        code = wait(pid)
        if code == 0:
            continue
        told["stopped"] += 1
        logged = losses(out) if (out / artifacts.METRICS).is_file() else []
        found = checkpoint.newest(out / artifacts.CHECKPOINTS)
        saved = 0 if found is None else found.progress.step
        # USR1 before the stage has begun ends the process: nothing is lost.
        early = code == -number and not logged
        if not (early or (code == 75 and saved == len(logged))) or (out / artifacts.ADAPTER).exists():
            told["wrong"].append([number.name, code, saved, len(logged)])
        wait(start(out))
        told["different"] += result(out) != wanted
    return told


if __name__ == "__main__":
    torch.set_num_threads(1)
    kind, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    with memory_for(4):
        print(json.dumps({"kills": kills, "signals": signals}[kind](folder, count)))
