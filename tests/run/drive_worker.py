"""A worker whose stages are the stand-ins of this folder: `python drive_worker.py RUN_DIR STAGE`."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "src")]

from tunerun import worker  # noqa: E402 (the path comes first)

worker.STAGES = {name: f"stand_ins:{name}" for name in worker.STAGES}

if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[1:]))
