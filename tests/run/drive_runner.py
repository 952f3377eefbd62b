"""Executes a plan with stand-in stages: `python drive_runner.py RUN_DIR DATA MODEL`, for tests that kill the runner."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import scenario

from tunerun.errors import TunerunError
from tunerun.launch import process

if __name__ == "__main__":
    scenario.use_stand_ins()
    process.STOP_GRACE_SECONDS = 3.0
    try:
        sys.exit(scenario.execute(*map(Path, sys.argv[1:4])))
    except TunerunError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
