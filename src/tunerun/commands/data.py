"""`tunerun data ...`: prepares the data only; needs the model's tokenizer, not its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunerun import artifacts
from tunerun.commands import arguments
from tunerun.commands.prepare import prepare, require_ready
from tunerun.config.resolve import resolve
from tunerun.errors import ExitCode
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
    code = runner.execute(prepared.plan, config=prepared.config)
    if code == ExitCode.DONE:
        print((Path(prepared.plan.run_dir) / artifacts.DATA / "preview.txt").read_text(encoding="utf-8"))
    return code
