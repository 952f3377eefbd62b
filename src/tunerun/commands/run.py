"""`tunerun +recipe=...`: runs the stages of a config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunerun.commands import arguments
from tunerun.commands.prepare import prepare, require_ready, start
from tunerun.config.resolve import resolve
from tunerun.launch.cluster import Typed


def main(argv: Sequence[str]) -> int:
    """Composes, plans and runs.

    Args:
        argv: Overrides, and `--config-dir FOLDER`.

    Returns:
        The exit code.
    """
    options, overrides = arguments.split(argv, flags=(), values=arguments.CONFIG_DIR)
    config_dir = arguments.config_dir(options)
    prepared = prepare(resolve(overrides, config_dir))
    require_ready(prepared)
    return start(prepared, Typed(arguments=tuple(overrides), directory=Path.cwd(), config_dir=config_dir))
