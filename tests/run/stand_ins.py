"""Stages that take no time but really run in their own process, write files and obey or ignore signals.

`TUNERUN_TEST_BEHAVIOUR=stage:what` makes one of them misbehave.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
import traceback
import urllib.parse
from pathlib import Path

from tunerun import artifacts, hashes
from tunerun.base_model import BaseModel, read_base, write_base
from tunerun.errors import GateError, Preempted, Problem, Pruned, StageError, UserError
from tunerun.progress import Progress, goes_on


def model(step, out):
    folder = Path(step.model.path)
    digest = hashes.folder_sha256(list(folder.iterdir()), folder)
    write_base(out, BaseModel(folder=folder, path=step.model.path, revision=None, sha256=digest))
    _behave("model", out)
    return [artifacts.describe(out, "model-record", artifacts.MODEL)]


def answer(step, out):
    _behave("answer", out)
    return []


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
    if step.train.eval_steps is not None:
        _measure(step, out)
    with artifacts.publish(out / "adapter") as staging:
        staging.mkdir()
        (staging / "weights.txt").write_text(f"{source} {step.train.learning_rate} {read_base(out).sha256}")
    print("trained")
    return [artifacts.describe(out, "adapter", "adapter")]


def _measure(step, out):
    """Measures a loss that falls with every step, and is the lowest at a learning rate of 1e-3."""
    with (out / "metrics.jsonl").open("w") as metrics:
        for number in range(step.train.eval_steps, step.train.max_steps + 1, step.train.eval_steps):
            loss = abs(math.log10(step.train.learning_rate) + 3) + 1 / number
            metrics.write(json.dumps({"step": number, "eval_loss": loss}) + "\n")
            metrics.flush()
            if number < step.train.max_steps and not goes_on(number, loss):
                raise Pruned(f"ended at step {number}.")


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


def publish(step, out):
    from tunerun.publish import stage

    return stage.run(step, out)


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


def _leak_all(out):
    """Says every secret of the environment, alone and in what libraries print, and dies of one."""
    # Some are kept from a stage that has no use for them.
    names = [name for name in os.environ["TUNERUN_TEST_NAMES"].split(",") if name in os.environ]
    for name in names:
        value = os.environ[name]
        quoted = urllib.parse.quote(value, safe="")
        print(f"using {value} as {name}", f"{name}={value}", json.dumps({name: value}), repr(value), sep="\n")
        print(f"GET https://user:{quoted}@example.org/x?token={quoted}", f"Authorization: Bearer {value}", sep="\n")
        print(f"warning: {value!r} was refused", file=sys.stderr)
        try:
            raise ConnectionError(f"no answer to {value}")
        except ConnectionError as error:
            # What a library raises ends in the log, and in the record as the stage's error.
            failure = RuntimeError(f"login with {value} at https://{quoted}@example.org failed")
            failure.__cause__ = error
            traceback.print_exception(failure)
    print(os.environ["DATABASE_URL"])
    raise RuntimeError(" ".join(os.environ[name] for name in names))


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
    "leak-all": _leak_all,
}
