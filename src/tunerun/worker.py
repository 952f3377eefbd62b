"""Runs one stage in its own process: `python -m tunerun.worker RUN_DIR STAGE`.

The only importer of stages. Reads plan.json, calls the stage, and leaves `status/<stage>.json` for the runner; ranks
after the first leave `status/<stage>-<rank>.json`. torchrun turns every exit code into 1, so the code alone could not
say what happened.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from tunerun import artifacts, child, redact
from tunerun.artifacts import Artifact
from tunerun.base_model import read_base
from tunerun.cli import render_error
from tunerun.config import typed
from tunerun.errors import ExitCode, FailedElsewhere, Pruned, TryAgain, TunerunError, system_fault
from tunerun.plan import steps
from tunerun.plan.steps import DataStep, EvalStep, ModelStep, Step, TrainStep, quantisation_of

STAGES = {
    "model": "tunerun.models.fetch:run",
    "answer": "tunerun.data.answer.stage:run",
    "data": "tunerun.data.stage:run",
    "train": "tunerun.train.stage:run",
    "eval": "tunerun.evaluate.stage:run",
    "merge": "tunerun.merge.stage:run",
    "export": "tunerun.export.stage:run",
    "verify": "tunerun.verify.stage:run",
    "publish": "tunerun.publish.stage:run",
    "serve": "tunerun.serve.stage:run",
}

# peft imports bitsandbytes, and with it torch's compiler: about as long as torch itself takes. transformers imports
# sklearn, for a way to generate that is not used.
_BITSANDBYTES, _SKLEARN = "bitsandbytes", "sklearn"
_PEFT = "peft.import_utils"
SELDOM_NEEDED = (_BITSANDBYTES, _SKLEARN)

StageFunction = Callable[[Any, Path], list[Artifact]]


def load_stage(stage: str) -> StageFunction:
    """Imports the function that runs a stage."""
    module, _, name = STAGES[stage].partition(":")
    return cast(StageFunction, vars(importlib.import_module(module))[name])


def unneeded(step: Step, run_dir: Path) -> tuple[str, ...]:
    """Names the packages that libraries would import on behalf of a step, and that the step has no use for."""
    if isinstance(step, ModelStep | DataStep):
        return SELDOM_NEEDED
    if not isinstance(step, TrainStep | EvalStep):
        return ()
    if isinstance(step, TrainStep):
        is_quantised = step.objective.kind == "distill" or quantisation_of(step.method) is not None
    elif step.eval.lm_eval:
        # Tasks bring metrics of their own.
        return ()
    else:
        is_quantised = step.quantisation is not None
    config = read_base(run_dir).folder / "config.json"
    if is_quantised or not config.is_file() or "quantization_config" in artifacts.read_json(config):
        return (_SKLEARN,)
    return SELDOM_NEEDED


@contextmanager
def leaving_out(names: Collection[str]) -> Iterator[None]:
    """Lets libraries believe, when they are imported within the block, that packages are not installed.

    Args:
        names: Of the packages; those that are imported already stay.
    """
    hidden = [name for name in names if name not in sys.modules]
    # As `import` documents: it is not found.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
        if _BITSANDBYTES in hidden and _PEFT in sys.modules:
            # It looks once, when an adapter is put on, and remembers the answer.
            vars(sys.modules[_PEFT])["is_bnb_available"]()
            vars(sys.modules[_PEFT])["is_bnb_4bit_available"]()
    finally:
        for name in hidden:
            del sys.modules[name]


def main(argv: list[str]) -> int:
    """Runs the step of plan.json that belongs to a stage.

    Args:
        argv: Run directory and stage.

    Returns:
        The exit code.
    """
    child.stop_on_signals()
    child.watch_parent()
    run_dir, stage = Path(argv[0]), argv[1]
    report = child.RankReport()
    if child.rank():
        _log_apart(run_dir / artifacts.LOGS / f"{stage}-rank{child.rank()}.log")
    code = _work(run_dir, stage)
    report.end(code)
    # torchrun kills the other ranks, which may still be saving, when one ends with another code than 0.
    return 0 if child.rank() is not None and code in (ExitCode.PREEMPTED, ExitCode.PRUNED) else code


def _log_apart(log: Path) -> None:
    """Sends what this process prints to a file of its own: the first rank says the same."""
    log.parent.mkdir(exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def hold_base(run_dir: Path, stage: str) -> None:
    """Loads the base model of a stage that leaves it as it is, so that copies of this process need not.

    Args:
        run_dir: Holds plan.json and model.json.
        stage: Of the plan.
    """
    step = _step(run_dir, stage)
    if not isinstance(step, TrainStep | EvalStep):
        return
    from tunerun.models import held

    try:
        with leaving_out(unneeded(step, run_dir)):
            held.hold(step, read_base(run_dir))
    except (TunerunError, OSError):
        # The copy will meet it, too, and say so.
        return


def misses(run_dir: Path, stage: str) -> bool:
    """Says whether a stage has a use for what this process left out when it imported its stages."""
    try:
        return not set(SELDOM_NEEDED) <= {*unneeded(_step(run_dir, stage), run_dir)}
    except OSError:
        # The stage will meet it, too, and say so.
        return False


def _step(run_dir: Path, stage: str) -> Step:
    plan = artifacts.read_json(run_dir / artifacts.PLAN)
    return steps.from_json(next(item for item in plan["steps"] if item["stage"] == stage))


def _work(run_dir: Path, stage: str) -> int:
    step = _step(run_dir, stage)
    try:
        with leaving_out(unneeded(step, run_dir)):
            function = load_stage(stage)
        made = function(step, run_dir)
    except child.Stopped as signal_name:
        return _finish(run_dir, step, ExitCode.PREEMPTED, f"stopped by {signal_name}", [])
    except TryAgain as error:
        return _finish(run_dir, step, error.exit_code, str(error), [], again=True)
    except FailedElsewhere as error:
        return _finish(run_dir, step, error.exit_code, str(error), [], echo=True)
    except Pruned as end:
        print(f"{stage}: {end}")
        return _finish(run_dir, step, end.exit_code, str(end), [])
    except TunerunError as error:
        print(render_error(error), file=sys.stderr)
        return _finish(run_dir, step, error.exit_code, str(error), [])
    except OSError as error:
        # A full disk or a missing right: the message is all a user can use.
        print(f"{stage}: {system_fault(error)}", file=sys.stderr)
        return _finish(run_dir, step, ExitCode.STAGE_FAILED, system_fault(error), [])
    except Exception as error:  # noqa: BLE001 (the last line of a process: whatever it was, the runner must learn it)
        traceback.print_exc()
        return _finish(run_dir, step, ExitCode.STAGE_FAILED, f"{type(error).__name__}: {error}", [])
    return _finish(run_dir, step, ExitCode.DONE, None, made)


def _finish(run_dir: Path, step: Step, code: ExitCode, error: str | None, made: list[Artifact], **notes: bool) -> int:
    """Writes the status.

    Args:
        run_dir: The run directory.
        step: What it was to do.
        code: How it ended.
        error: Message of a failure.
        made: What it made.
        notes: `again` when it asks to be started again, `echo` when it failed because another rank did.
    """
    secrets = redact.secret_values(os.environ, steps.secret_variables(step))
    told = None if error is None else redact.text(error, secrets)
    ended = {"exit_code": int(code), "error": told, "time": time.time(), "again": False, "echo": False, **notes}
    name = f"{step.stage}-{child.rank()}" if child.rank() else step.stage
    try:
        artifacts.write_json(
            run_dir / artifacts.STATUS / f"{name}.json", {"schema": 1, **ended, "artifacts": typed.plain(made)}
        )
    except OSError as failure:
        print(f"{step.stage}: the status could not be written: {failure}", file=sys.stderr)
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
