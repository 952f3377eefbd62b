"""`tunerun +recipe=...`: runs the stages of a config."""

from __future__ import annotations

from collections.abc import Sequence

from tunerun.commands import arguments
from tunerun.commands.prepare import prepare, require_ready, start
from tunerun.config.resolve import resolve


def main(argv: Sequence[str]) -> int:
    """Composes, plans and runs.

    Args:
        argv: Overrides, and `--config-dir FOLDER`.

    Returns:
        The exit code.
    """
    options, overrides = arguments.split(argv, flags=(), values=("--config-dir", "-cd"))
    prepared = prepare(resolve(overrides, arguments.config_dir(options)))
    require_ready(prepared)
    return start(prepared, overrides)
