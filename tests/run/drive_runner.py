"""Executes a plan with stand-in stages: `python drive_runner.py RUN_DIR DATA MODEL`, for tests that kill the runner."""

import sys
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "src")]

import scenario  # noqa: E402 (the path comes first)

from tunerun.errors import TunerunError  # noqa: E402 (the path comes first)
from tunerun.launch import process  # noqa: E402 (the path comes first)

if __name__ == "__main__":
    scenario.use_stand_ins()
    process.run = partial(process.run, grace_seconds=3.0)
    try:
        sys.exit(scenario.execute(*map(Path, sys.argv[1:4]), stages=("data", "train", "merge")))
    except TunerunError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
