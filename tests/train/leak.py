"""Trains, and says every secret of the environment while trackers look on: `python -m tests.train.leak RUN_DIR`."""

import logging
import os
import subprocess
import sys
import traceback
import warnings

from tests.secret_kinds import KINDS
from tests.train.runs import before_step
from tunerun import worker

HARMLESS = "nothing to hide 4711"


def say_all() -> None:
    """Says them in each way that libraries have, with a child's output among them, and dies of one."""
    print(HARMLESS)
    for variable, _, _ in KINDS.values():
        value = os.environ[variable]
        print(f"using {value} as {variable}", f"{variable}={value}", repr(value), sep="\n")
        logging.getLogger("a.library").error("%s was refused", value)
        warnings.warn(f"{value} expires soon", stacklevel=1)
        try:
            raise ConnectionError(f"no answer to {value}")
        except ConnectionError:
            traceback.print_exc()
    subprocess.run(["env"], check=True)
    raise RuntimeError(" ".join(os.environ[variable] for variable, _, _ in KINDS.values()))


if __name__ == "__main__":
    with before_step(1, say_all):
        sys.exit(worker.main([sys.argv[1], "train"]))
