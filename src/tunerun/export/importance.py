"""The importance matrix of a model, measured by a child process that may load torch."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tunerun import artifacts
from tunerun.errors import Problem, StageError, UserError
from tunerun.export.model import Model
from tunerun.export.tensors import file_names
from tunerun.formats.floats import Float32
from tunerun.formats.safetensors import read_header, read_tensor
from tunerun.formats.tokens import MANIFEST

_CHILD = "tunerun.models.importance"
_SAID_CHARACTERS = 2000


def read_importance(
    model: Model, base: Path, adapter: Path | None, run_dir: Path, *, most_tokens: int
) -> dict[str, Float32]:
    """Runs a model over the training data of a run.

    Args:
        model: What is written.
        base: Folder of its weights.
        adapter: Folder of the adapter that is merged into them, if any.
        run_dir: Holds the data.
        most_tokens: To stop after.

    Returns:
        By the GGUF name of each matrix of a layer: the mean square of every input.

    Raises:
        UserError: The run has no data.
        StageError: The model could not be run.
    """
    # Preference data are two stores; the chosen answers are what the model is to give.
    stores = (run_dir / artifacts.DATA, run_dir / artifacts.DATA / "chosen")
    store = next((folder for folder in stores if (folder / MANIFEST).is_file()), None)
    if store is None:
        fix = "Add data to the stages, or set export.gguf.imatrix=false."
        raise UserError(Problem(where="export.gguf.imatrix", what="there are no data to measure on.", fix=fix))
    with tempfile.TemporaryDirectory(prefix="tunerun-importance-") as scratch:
        file = Path(scratch) / "importance.safetensors"
        arguments = [str(base), "" if adapter is None else str(adapter), str(store), str(file), str(most_tokens)]
        command = [sys.executable, "-P", "-m", _CHILD, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = done.stderr.strip()[-_SAID_CHARACTERS:]
            raise StageError(f"the importance matrix of {base} could not be measured:\n{said}")
        found = {name: read_tensor(info) for name, info in read_header(file).items()}
    return _by_file_name(found, model)


def _by_file_name(measured: Mapping[str, Float32], model: Model) -> dict[str, Float32]:
    names = file_names(measured, model.config, model.architecture)
    # As llama.cpp's own tool: the output head is left out.
    return {ours: measured[theirs] for theirs, ours in names.items() if theirs in measured and ours.startswith("blk.")}
