"""Trains in a process that may only take so much memory (`python -m tests.train.limited FOLDER MICRO_BATCH MIB`).

Then trains without the limit, as if the micro-batch that was found had been planned. Prints the hashes of both adapters
as the last two lines.
"""

from __future__ import annotations

import resource
import sys
from dataclasses import replace
from pathlib import Path

import torch

from tests.tiny import write_store
from tests.train.runs import LORA, make_run, train_step
from tunerun import artifacts, fits
from tunerun.train.stage import run

ROW_TOKENS = 500
_SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}


def prepare(out: Path) -> Path:
    """Makes a run directory whose rows take tens of MiB of activations each."""
    make_run(out, rows=1, base=_SIZES)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 317, (8, ROW_TOKENS), generator=generator).tolist()
    write_store(out / artifacts.DATA, [[(row, [1] * ROW_TOKENS)] for row in rows])
    return out


def _taken_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def main(folder: Path, micro_batch_size: int, mib: int) -> None:
    """Trains three times: as a warm-up, so that libraries and pools are there, within the limit, and without."""
    run(train_step(LORA, micro_batch_size=1, max_steps=1), make_run(folder / "warm-up", rows=1, base=_SIZES))
    step, limited, planned = train_step(LORA, max_steps=1), prepare(folder / "limited"), prepare(folder / "planned")
    resource.setrlimit(resource.RLIMIT_AS, (_taken_bytes() + (mib << 20), resource.RLIM_INFINITY))
    first = run(replace(step, micro_batch_size=micro_batch_size), limited)[0]
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    second = run(replace(step, micro_batch_size=fits.read(limited)[-1].micro_batch_size), planned)[0]
    print(first.sha256, second.sha256, sep="\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
