from __future__ import annotations

import subprocess
import sys

from tunerun.train.metrics import peak_memory_bytes


def test_the_peak_memory_is_that_of_the_process_and_not_of_the_one_that_started_it() -> None:
    held = b"\1" * (1 << 30)
    assert peak_memory_bytes("cpu") > len(held)
    code = "from tunerun.train.metrics import peak_memory_bytes; print(peak_memory_bytes('cpu'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # torch itself takes some hundred MB.
    assert 1 << 27 < int(done.stdout) < len(held)
