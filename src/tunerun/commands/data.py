"""`tunerun data ...`: prepares the data only; needs the model's tokenizer, not its weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tunerun import artifacts
from tunerun.base_model import read_base
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.commands import arguments
from tunerun.commands.prepare import prepare, require_ready
from tunerun.config.resolve import resolve
from tunerun.data.preview import preview
from tunerun.formats.pairs import open_store
from tunerun.run import runner

_STAGES = "stages=[data]"


def main(argv: Sequence[str]) -> int:
    """Runs the data stage and prints the preview.

    Args:
        argv: Overrides, and `--config-dir FOLDER`.

    Returns:
        The exit code.
    """
    options, overrides = arguments.split(argv, flags=(), values=("--config-dir", "-cd"))
    prepared = prepare(resolve([*overrides, _STAGES], arguments.config_dir(options)))
    require_ready(prepared)
    return runner.execute(prepared.plan, config=prepared.config, summarise=_preview)


def _preview(run_dir: Path, name: str) -> str:
    """Shows three samples as the model will see them, trained text in green on a terminal."""
    folder = run_dir / artifacts.DATA
    if sys.stdout.isatty():
        text = preview(open_store(folder), load_tokenizer(read_base(run_dir).folder), colour=True)
    else:
        text = (folder / "preview.txt").read_text(encoding="utf-8")
    return f"{name}: the first samples, trained text marked\n\n{text.rstrip()}\n"
