"""One process of a group: `python -m tests.train.engines.rank FOLDER`."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

from tests.train.engines.group import ENGINE
from tests.train.runs import Killed, kill_before, nan_in_step
from tunerun.plan import steps
from tunerun.plan.steps import TrainStep
from tunerun.train import loop, stage
from tunerun.train.ranks import connected
from tunerun.train.signals import StopRequest


def main(folder: Path) -> None:
    """Does the work that the folder names."""
    work = json.loads((folder / "work.json").read_text())
    first = steps.from_json(work[0]["step"])
    assert isinstance(first, TrainStep)
    with connected(first.placement) as ranks:
        for item in work:
            step, out = steps.from_json(item["step"]), Path(item["out"])
            assert isinstance(step, TrainStep)
            if ranks.is_first:
                _note_engine(out)
            stopping = contextlib.nullcontext() if item["stop_before"] is None else kill_before(item["stop_before"])
            broken = item["nan_step"] if ranks.rank == ranks.world - 1 else None
            with stopping, nan_in_step(broken), contextlib.suppress(Killed):
                stage.train(step, out, StopRequest(), ranks)
            ranks.wait()


def _note_engine(out: Path) -> None:
    """Writes which library's wrapper the model is really in when training begins."""
    original = stage.loop.run

    def run(job, *rest):
        engine = job.engine
        wrapped = engine._engine if hasattr(engine, "_engine") else engine._body
        names = [f"{kind.__module__}.{kind.__name__}" for kind in type(wrapped).__mro__]
        if hasattr(engine, "_zero"):
            names.append(f"{type(engine._zero).__module__}.{type(engine._zero).__name__}")
        (out / ENGINE).write_text("\n".join(names))
        loop.run = original
        return original(job, *rest)

    loop.run = run


if __name__ == "__main__":
    main(Path(sys.argv[1]))
