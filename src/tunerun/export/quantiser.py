"""Quantisers with an environment of their own: what they are calibrated on, and how they are run."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunerun import artifacts
from tunerun.errors import Problem, StageError, UserError
from tunerun.formats.pairs import PairStore, open_store

_SAID_CHARACTERS = 2000
# Longer rows tell little more about a layer's inputs.
_ROW_TOKENS = 2048


def run(child: Path, job: Mapping[str, Any], python: str, library: str) -> None:
    """Runs a quantiser in an interpreter in which tunerun need not be installed.

    Args:
        child: Script that takes a JSON file.
        job: What the file says; has `model`, the folder.
        python: The interpreter.
        library: What the script needs, for messages.

    Raises:
        StageError: The library is not there or fails; says what it said.
    """
    with tempfile.TemporaryDirectory(prefix="tunerun-quantiser-") as scratch:
        (Path(scratch) / "job.json").write_text(json.dumps(job), encoding="utf-8")
        # Modules beside the script are no libraries.
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
        # With fewer workers than it asks for elsewhere gptqmodel 7.6 refuses to start on CPUs of up to 2 cores.
        environment.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, (os.cpu_count() or 1) // 2)))
        command = [python, str(child), str(Path(scratch) / "job.json")]
        try:
            done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True, check=False)
        except OSError as error:
            raise StageError(f"env.export.python: {python} cannot be run: {error}.") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-_SAID_CHARACTERS:]
        fix = f"Install {library} into an environment of its own and set env.export.python to its interpreter."
        raise StageError(f"{library} could not quantise {job['model']} ({python}). {fix}\n{said}")


def calibration(run_dir: Path, count: int, key: str) -> list[list[int]]:
    """Returns the first sample of the first rows of the training data.

    Args:
        run_dir: Holds them.
        count: Of rows.
        key: That asks for them, for messages.

    Raises:
        UserError: The run has no data.
    """
    if not (run_dir / artifacts.DATA).is_dir():
        what = "there are no data to calibrate on."
        raise UserError(Problem(where=key, what=what, fix="Add data to the stages."))
    store = open_store(run_dir / artifacts.DATA)
    tokens = store.chosen if isinstance(store, PairStore) else store
    rows = []
    for index in range(min(count, len(tokens))):
        ids, _, segments = tokens.row(index)
        rows.append(ids[segments == segments[0]][:_ROW_TOKENS].tolist())
    return rows
