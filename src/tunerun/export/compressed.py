"""Folders in FP8 or AWQ's 4 bits, made by llm-compressor in an environment of its own (compressed-tensors' format)."""

from __future__ import annotations

from pathlib import Path

from tunerun.config.schema import AwqConfig
from tunerun.export import quantiser
from tunerun.models.folder import carry_files

_CHILD = Path(__file__).with_name("compressed_child.py")
_LIBRARY = "llmcompressor"


def write_fp8(model: Path, out: Path, python: str) -> None:
    """Rounds a merged model to FP8, which needs no data.

    Args:
        model: The model's folder.
        out: The new folder.
        python: Interpreter of an environment with llm-compressor.

    Raises:
        StageError: llm-compressor is not there or fails; says what it said.
    """
    _write(model, out, python, scheme="FP8_DYNAMIC", group_size=0, rows=[])


def write_awq(model: Path, run_dir: Path, out: Path, settings: AwqConfig, python: str) -> None:
    """Quantises a merged model to 4 bits, after its layers were scaled to their inputs.

    Args:
        model: The model's folder.
        run_dir: Holds the training data.
        out: The new folder.
        settings: Groups and rows.
        python: Interpreter of an environment with llm-compressor.

    Raises:
        UserError: The run has no data.
        StageError: llm-compressor is not there or fails; says what it said.
    """
    rows = quantiser.calibration(run_dir, settings.rows, "export.awq.write")
    _write(model, out, python, scheme="W4A16", group_size=settings.group_size, rows=rows)


def _write(model: Path, out: Path, python: str, *, scheme: str, group_size: int, rows: list[list[int]]) -> None:
    job = {"model": str(model), "out": str(out), "scheme": scheme, "group_size": group_size, "rows": rows}
    quantiser.run(_CHILD, job, python, _LIBRARY)
    # Tokenizer and template as they were, and not as another version of transformers writes them.
    carry_files(model, out)
