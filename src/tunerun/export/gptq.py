"""A GPTQ folder, made by gptqmodel in an environment of its own and calibrated on the training data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tunerun import artifacts
from tunerun.config.schema import GptqConfig
from tunerun.errors import Problem, StageError, UserError
from tunerun.formats.pairs import PairStore, open_store
from tunerun.models.folder import carry_files

_CHILD = Path(__file__).with_name("gptq_child.py")
_SAID_CHARACTERS = 2000
# Longer rows tell little more about a layer's inputs.
_ROW_TOKENS = 2048


def write_gptq(model: Path, run_dir: Path, out: Path, settings: GptqConfig, python: str) -> None:
    """Quantises a merged model.

    Args:
        model: The model's folder.
        run_dir: Holds the training data.
        out: The new folder.
        settings: Bits and groups.
        python: Interpreter of an environment with gptqmodel.

    Raises:
        UserError: The run has no data.
        StageError: gptqmodel is not there or fails; says what it said.
    """
    rows = _calibration(run_dir, settings.rows)
    with tempfile.TemporaryDirectory(prefix="tunerun-gptq-") as scratch:
        job = {"model": str(model), "out": str(out), "bits": settings.bits, "group_size": settings.group_size}
        (Path(scratch) / "job.json").write_text(json.dumps({**job, "rows": rows}), encoding="utf-8")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        # With fewer workers than it asks for elsewhere gptqmodel 7.6 refuses to start on CPUs of up to 2 cores.
        environment.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, (os.cpu_count() or 1) // 2)))
        command = [python, str(_CHILD), str(Path(scratch) / "job.json")]
        try:
            done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True, check=False)
        except OSError as error:
            raise StageError(f"env.export.python: {python} cannot be run: {error}.") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-_SAID_CHARACTERS:]
        fix = "Install gptqmodel into an environment of its own and set env.export.python to its interpreter."
        raise StageError(f"gptqmodel could not quantise {model} ({python}). {fix}\n{said}")
    for log in out.glob("*.csv"):
        log.unlink()
    for folder in out.glob(".*"):
        shutil.rmtree(folder, ignore_errors=True)
    # Tokenizer and template as they were, and not as another version of transformers writes them.
    carry_files(model, out)


def _calibration(run_dir: Path, count: int) -> list[list[int]]:
    """Returns the first sample of the first rows of the training data."""
    if not (run_dir / artifacts.DATA).is_dir():
        what = "there are no data to calibrate on."
        raise UserError(Problem(where="export.gptq.write", what=what, fix="Add data to the stages."))
    store = open_store(run_dir / artifacts.DATA)
    tokens = store.chosen if isinstance(store, PairStore) else store
    rows = []
    for index in range(min(count, len(tokens))):
        ids, _, segments = tokens.row(index)
        rows.append(ids[segments == segments[0]][:_ROW_TOKENS].tolist())
    return rows
