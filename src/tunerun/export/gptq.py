"""A GPTQ folder, made by gptqmodel in an environment of its own and calibrated on the training data."""

from __future__ import annotations

import shutil
from pathlib import Path

from tunerun.config.schema import GptqConfig
from tunerun.export import quantiser
from tunerun.models.folder import carry_files

_CHILD = Path(__file__).with_name("gptq_child.py")


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
    rows = quantiser.calibration(run_dir, settings.rows, "export.gptq.write")
    job = {"model": str(model), "out": str(out), "bits": settings.bits, "group_size": settings.group_size}
    quantiser.run(_CHILD, {**job, "rows": rows}, python, "gptqmodel")
    for log in out.glob("*.csv"):
        log.unlink()
    for folder in out.glob(".*"):
        shutil.rmtree(folder, ignore_errors=True)
    # Tokenizer and template as they were, and not as another version of transformers writes them.
    carry_files(model, out)
