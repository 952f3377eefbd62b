"""Stages that take no time but really run in their own process, write files and obey or ignore signals.

`TUNERUN_TEST_BEHAVIOUR=stage:what` makes one of them misbehave.
"""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tunerun import artifacts
from tunerun.base_model import BaseModel, read_base, write_base
from tunerun.errors import GateError, Preempted, Problem, StageError, UserError
from tunerun.progress import Progress


def model(step, out):
    folder = Path(step.model.path)
    files = b"".join(file.read_bytes() for file in sorted(folder.iterdir()))
    digest = hashlib.sha256(files).hexdigest()
    write_base(out, BaseModel(folder=folder, path=step.model.path, revision=None, sha256=digest))
    _behave("model", out)
    return [artifacts.describe(out, "model-record", artifacts.MODEL)]


def data(step, out):
    text = Path(step.data.path[0]).read_text(encoding="utf-8")
    with artifacts.publish(out / "data") as staging:
        staging.mkdir()
        (staging / "tokens.txt").write_text(f"{text} {step.data.max_length}", encoding="utf-8")
        _behave("data", out)
    return [artifacts.describe(out, "data", "data")]


def train(step, out):
    source = (out / "data/tokens.txt").read_text(encoding="utf-8")
    _behave("train", out)
    with artifacts.publish(out / "adapter") as staging:
        staging.mkdir()
        (staging / "weights.txt").write_text(f"{source} {step.train.learning_rate} {read_base(out).sha256}")
    print("trained")
    return [artifacts.describe(out, "adapter", "adapter")]


def merge(step, out):
    _behave("merge", out)
    weights = (out / step.adapter / "weights.txt").read_text(encoding="utf-8")
    with artifacts.publish(out / "merged") as staging:
        staging.mkdir()
        (staging / "model.txt").write_text(weights + step.chat_template if step.chat_template else weights)
    return [artifacts.describe(out, "model", "merged")]


def export(step, out):
    made = []
    for kind in step.gguf.types:
        path = f"export/{step.name}-{kind}.gguf"
        artifacts.write_text(out / path, (out / "merged/model.txt").read_text(encoding="utf-8") + kind)
        made.append(artifacts.describe(out, "gguf", path))
    _behave("export", out)
    return made


def _behave(stage, out):
    wanted, _, what = os.environ.get("TUNERUN_TEST_BEHAVIOUR", "").partition(":")
    if wanted == stage:
        _BEHAVIOURS[what](out)


def _sleep(out):
    (out / "logs/ready").touch()
    time.sleep(60)


def _checkpoint_when_stopped(out):
    stopped = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    (out / "logs/ready").touch()
    while not stopped:
        time.sleep(0.01)
    print("saving")
    with artifacts.publish(out / "checkpoints/step-7") as staging:
        staging.mkdir()
        (staging / "manifest.json").write_text("{}")
    raise Preempted("stopped at step 7")


def _ignore_signals(out):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _sleep(out)


def _grandchild(out):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (out / "logs/grandchild").write_text(str(child.pid))
    os.kill(os.getpid(), signal.SIGKILL)


def _progress(out):
    with Progress("train", total=20, unit="steps") as progress:
        for _ in range(20):
            time.sleep(0.02)
            progress.advance(note="loss 1.25")


def _user_error(out):
    raise UserError([Problem(where="train.jsonl:17", what="is not JSON.")])


def _stage_error(out):
    raise StageError("the disk is full")


def _gate_error(out):
    raise GateError("logits differ")


def _crash(out):
    os.kill(os.getpid(), signal.SIGSEGV)


def _leave(out):
    os._exit(0)


def _leak(out):
    print(f"connecting with {os.environ['MY_TOKEN']} to the hub")


_BEHAVIOURS = {
    "sleep": _sleep,
    "checkpoint": _checkpoint_when_stopped,
    "ignore": _ignore_signals,
    "grandchild": _grandchild,
    "progress": _progress,
    "user-error": _user_error,
    "stage-error": _stage_error,
    "gate-error": _gate_error,
    "crash": _crash,
    "leave": _leave,
    "leak": _leak,
}
